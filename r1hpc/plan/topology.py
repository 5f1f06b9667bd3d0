"""Ranks to parallel coordinates and process groups, in Megatron's rank order tp-cp-ep-dp-pp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from types import MappingProxyType

GROUP_AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tp": ("tp",),
        "cp": ("cp",),
        "dp": ("dp",),
        "pp": ("pp",),
        "dp_cp": ("cp", "dp"),
        "tp_cp": ("tp", "cp"),
        "tp_pp": ("tp", "pp"),
        "tp_dp_cp": ("tp", "cp", "dp"),
        "etp": ("etp",),
        "ep": ("ep",),
        "expert_dp": ("edp",),
        "etp_ep": ("etp", "ep"),
        "etp_ep_pp": ("etp", "ep", "pp"),
    }
)
"""Process groups and the coordinates that vary inside one. Gradients of dense weights are averaged and sharded over
dp_cp, those of experts over expert_dp; tp_pp holds one whole dense model."""


@dataclass(frozen=True)
class Coordinates:
    """Where a rank stands in the dense grid (tp, cp, dp, pp) and in the expert grid (etp, ep, edp, pp)."""

    tp: int
    cp: int
    dp: int
    pp: int
    etp: int
    ep: int
    edp: int


@dataclass(frozen=True)
class Topology:
    """The grid of a run. Rank r runs on GPU r % gpus_per_node of node r // gpus_per_node (hostfile order).

    rank = tp + TP * (cp + CP * (dp + DP * pp)) = etp + ETP * (ep + EP * (edp + EDP * pp)).
    The sizes must divide the world; `problems.grid_problems` says so to the user.
    """

    num_nodes: int
    gpus_per_node: int
    tp: int
    cp: int
    pp: int
    ep: int
    etp: int

    @property
    def world_size(self) -> int:
        """All GPUs."""
        return self.num_nodes * self.gpus_per_node

    @property
    def dp(self) -> int:
        """Data-parallel size of the dense weights."""
        return self.world_size // (self.tp * self.cp * self.pp)

    @property
    def edp(self) -> int:
        """Data-parallel size of the experts."""
        return self.world_size // (self.etp * self.ep * self.pp)

    @property
    def stage_size(self) -> int:
        """GPUs of one pipeline stage."""
        return self.world_size // self.pp

    def coordinates(self, rank: int) -> Coordinates:
        """The coordinates of a rank in both grids."""
        pp, in_stage = divmod(rank, self.stage_size)
        outer, tp = divmod(in_stage, self.tp)
        dp, cp = divmod(outer, self.cp)
        expert_outer, etp = divmod(in_stage, self.etp)
        edp, ep = divmod(expert_outer, self.ep)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp, etp=etp, ep=ep, edp=edp)

    def node_of(self, rank: int) -> int:
        """Index of the rank's node in the hostfile."""
        return rank // self.gpus_per_node

    def gpu_of(self, rank: int) -> int:
        """Index of the rank's GPU on its node."""
        return rank % self.gpus_per_node

    def groups(self, kind: str) -> list[list[int]]:
        """Every group of a kind of GROUP_AXES as ascending ranks, in the order that Megatron creates them."""
        expert = any(axis in ("etp", "ep", "edp") for axis in GROUP_AXES[kind])
        sizes = self._expert_axes() if expert else self._dense_axes()
        strides = {name: prod(sizes[before] for before in list(sizes)[:i]) for i, name in enumerate(sizes)}
        inside = [name for name in sizes if name in GROUP_AXES[kind]]
        outside = [name for name in sizes if name not in GROUP_AXES[kind]]
        members = _offsets([(sizes[name], strides[name]) for name in inside])
        return [
            [start + member for member in members]
            for start in _offsets([(sizes[name], strides[name]) for name in outside])
        ]

    def node_stages(self, node: int) -> list[int]:
        """The pipeline stage of each GPU of a node."""
        first = node * self.gpus_per_node
        return [rank // self.stage_size for rank in range(first, first + self.gpus_per_node)]

    def stage_nodes(self, stage: int) -> range:
        """Indices of the nodes that hold GPUs of a pipeline stage."""
        first = stage * self.stage_size
        return range(self.node_of(first), self.node_of(first + self.stage_size - 1) + 1)

    def _dense_axes(self) -> dict[str, int]:
        return {"tp": self.tp, "cp": self.cp, "dp": self.dp, "pp": self.pp}

    def _expert_axes(self) -> dict[str, int]:
        return {"etp": self.etp, "ep": self.ep, "edp": self.edp, "pp": self.pp}


def _offsets(axes: list[tuple[int, int]]) -> list[int]:
    """Every sum of index * stride over the axes; the first axis varies fastest."""
    steps = [range(0, size * stride, stride) for size, stride in reversed(axes)]
    return [sum(offset) for offset in product(*steps)]


def fold_ranks(ranks: list[int]) -> str:
    """Ranks in ClusterShell's RangeSet notation: 0-7, or 0-24/8 where they are evenly spaced."""
    if len(ranks) == 1:
        return str(ranks[0])
    step = ranks[1] - ranks[0]
    if any(after - before != step for before, after in pairwise(ranks)):
        return ",".join(map(str, ranks))
    return f"{ranks[0]}-{ranks[-1]}" + (f"/{step}" if step > 1 else "")
