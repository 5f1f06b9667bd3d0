"""Which couriers are given which tensor: dense ones all, an expert only those whose engine rank serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from r1hpc.checkpoint.names import TensorName
from r1hpc.config.engines import SglangConfig
from r1hpc.plan.engine_weights import engine_grid
from r1hpc.sync.outline import SyncError, SyncTarget

_ELSEWHERE = {
    "enable_eplb": False,
    "ep_num_redundant_experts": 0,
    "init_expert_location": "trivial",
    "moe_dp_size": 1,
    "pp_size": 1,
}
"""Arguments of SGLang by which experts come to lie otherwise, and the values by which they do not."""


def routed_ep_size(sglang: SglangConfig) -> int:
    """Runs of experts that lie on an engine's ranks in order; 1 where that is not known, and every rank is sent all."""
    passed = sglang.passed_through
    if any(passed.get(name, usual) != usual for name, usual in _ELSEWHERE.items()):
        return 1
    return engine_grid(sglang).expert_parallel


@dataclass(frozen=True)
class Routes:
    """The couriers of a sync and what each carries."""

    targets: tuple[SyncTarget, ...]
    num_experts: int

    def __post_init__(self) -> None:
        if len(set(self.couriers)) != len(self.couriers) or not self.couriers:
            raise SyncError(f"couriers {self.couriers}: each engine needs some, and each rank serves one engine rank")

    @cached_property
    def couriers(self) -> tuple[int, ...]:
        """Trainer ranks, those of the first engine first."""
        return tuple(rank for target in self.targets for rank in target.ranks)

    def to(self, name: TensorName) -> tuple[int, ...]:
        """The couriers that carry this tensor, in their order."""
        if name.expert is None:
            return self.couriers
        return self._of_expert[name.expert]

    @cached_property
    def _of_expert(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(rank for target in self.targets for rank in serving_ranks(target, expert, self.num_experts))
            for expert in range(self.num_experts)
        )


def serving_ranks(target: SyncTarget, expert: int, num_experts: int) -> Sequence[int]:
    """The couriers of one engine whose rank holds this expert.

    SGLang cuts the experts into ep_size equal runs; its ranks, in order, into as many equal runs (of more than one rank
    where experts are split further). Where that does not come out even, every rank is given the expert, and leaves what
    it does not own.
    """
    ranks, ep_size = target.ranks, target.ep_size
    if ep_size == 1 or len(ranks) % ep_size or num_experts % ep_size:
        return ranks
    per_group = len(ranks) // ep_size
    group = expert // (num_experts // ep_size)
    return ranks[group * per_group : (group + 1) * per_group]
