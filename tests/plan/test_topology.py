"""Ranks, coordinates and process groups."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.plan.topology import GROUP_AXES, Topology, fold_ranks

R1 = Topology(num_nodes=16, gpus_per_node=8, tp=8, cp=4, pp=4, ep=32, etp=1)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Grids of 8 to 512 GPUs whose sizes divide, with both data-parallel sizes from 1 up."""
    power = st.integers(0, 3).map(lambda exponent: 2**exponent)
    tp, cp, pp, etp = draw(power), draw(power), draw(power), draw(st.sampled_from([1, 2]))
    stage = tp * cp * draw(power)
    stage = stage * etp if stage % etp else stage
    ep = draw(st.sampled_from([size for size in (1, 2, 4, 8, 16, 32) if (stage // etp) % size == 0]))
    world = stage * pp
    per_node = draw(st.sampled_from([size for size in (1, 2, 4, 8) if world % size == 0]))
    return Topology(num_nodes=world // per_node, gpus_per_node=per_node, tp=tp, cp=cp, pp=pp, ep=ep, etp=etp)


@given(topologies())
@settings(max_examples=60, deadline=None)
def test_every_kind_of_group_partitions_the_ranks(grid: Topology) -> None:
    for kind in GROUP_AXES:
        groups = grid.groups(kind)
        assert Counter(rank for group in groups for rank in group) == Counter(range(grid.world_size)), kind
        assert len({len(group) for group in groups}) == 1
        assert all(group == sorted(group) for group in groups)


@given(topologies())
@settings(max_examples=60, deadline=None)
def test_coordinates_name_each_rank_once_in_either_grid(grid: Topology) -> None:
    at = [grid.coordinates(rank) for rank in range(grid.world_size)]
    assert len({(c.tp, c.cp, c.dp, c.pp) for c in at}) == grid.world_size
    assert len({(c.etp, c.ep, c.edp, c.pp) for c in at}) == grid.world_size
    for rank, c in enumerate(at):
        assert rank == c.tp + grid.tp * (c.cp + grid.cp * (c.dp + grid.dp * c.pp))
        assert rank == c.etp + grid.etp * (c.ep + grid.ep * (c.edp + grid.edp * c.pp))


@given(topologies())
@settings(max_examples=60, deadline=None)
def test_ranks_of_a_group_differ_in_its_own_coordinates_only(grid: Topology) -> None:
    at = [grid.coordinates(rank) for rank in range(grid.world_size)]
    for kind, axes in GROUP_AXES.items():
        own = set(axes)
        fixed = {"etp", "ep", "edp", "pp"} if own & {"etp", "ep", "edp"} else {"tp", "cp", "dp", "pp"}
        for group in grid.groups(kind):
            for axis in fixed - own:
                assert len({getattr(at[rank], axis) for rank in group}) == 1, (kind, axis)


MCORE_TOKENS = {
    "tp": "tp",
    "cp": "cp",
    "dp": "dp",
    "pp": "pp",
    "dp_cp": "dp-cp",
    "tp_cp": "tp-cp",
    "tp_pp": "tp-pp",
    "tp_dp_cp": "tp-dp-cp",
    "etp": "tp",
    "ep": "ep",
    "expert_dp": "dp",
    "etp_ep": "tp-ep",
    "etp_ep_pp": "tp-ep-pp",
}


@pytest.mark.parametrize(
    "grid",
    [
        R1,
        Topology(num_nodes=32, gpus_per_node=8, tp=8, cp=4, pp=4, ep=32, etp=1),
        Topology(num_nodes=4, gpus_per_node=2, tp=2, cp=2, pp=2, ep=2, etp=1),
        Topology(num_nodes=8, gpus_per_node=8, tp=2, cp=2, pp=4, ep=4, etp=2),
    ],
    ids=["r1", "r1 with DP 2", "rehearsal", "ETP 2"],
)
def test_groups_are_those_of_megatron(grid: Topology) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel_state = pytest.importorskip("megatron.core.parallel_state")
    order = "tp-cp-ep-dp-pp"
    dense = parallel_state.RankGenerator(tp=grid.tp, ep=1, dp=grid.dp, pp=grid.pp, cp=grid.cp, order=order)
    expert = parallel_state.RankGenerator(tp=grid.etp, ep=grid.ep, dp=grid.edp, pp=grid.pp, cp=1, order=order)
    assert MCORE_TOKENS.keys() == GROUP_AXES.keys()
    for kind, token in MCORE_TOKENS.items():
        generator = expert if set(GROUP_AXES[kind]) & {"etp", "ep", "edp"} else dense
        assert grid.groups(kind) == generator.get_ranks(token), kind


def test_groups_of_rank_0_by_hand() -> None:
    first = {kind: fold_ranks(R1.groups(kind)[0]) for kind in ("tp", "cp", "pp", "dp", "ep", "expert_dp", "dp_cp")}
    assert first == {
        "tp": "0-7",
        "cp": "0-24/8",
        "pp": "0-96/32",
        "dp": "0",
        "ep": "0-31",
        "expert_dp": "0",
        "dp_cp": "0-24/8",
    }


def test_twice_the_nodes_double_data_parallelism() -> None:
    doubled = Topology(num_nodes=32, gpus_per_node=8, tp=8, cp=4, pp=4, ep=32, etp=1)
    assert (doubled.dp, doubled.edp) == (2, 2)
    assert doubled.groups("dp")[0] == [0, 32]
    assert doubled.groups("pp")[0] == [0, 64, 128, 192]


def test_a_node_may_carry_several_stages() -> None:
    grid = Topology(num_nodes=2, gpus_per_node=8, tp=2, cp=1, pp=8, ep=2, etp=1)
    assert grid.node_stages(0) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert list(grid.stage_nodes(4)) == [1]


@pytest.mark.parametrize(
    ("ranks", "text"), [([5], "5"), ([0, 1, 2], "0-2"), ([3, 35, 67], "3-67/32"), ([0, 1, 4], "0,1,4")]
)
def test_folded_ranks_are_what_clustershell_reads(ranks: list[int], text: str) -> None:
    from ClusterShell.NodeSet import RangeSet

    assert fold_ranks(ranks) == text
    assert [int(rank) for rank in RangeSet(text)] == ranks
