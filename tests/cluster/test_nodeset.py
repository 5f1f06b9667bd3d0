"""Node sets as text."""

from __future__ import annotations

import pytest

from r1hpc.cluster.nodeset import expand, fold


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node01", ["node01"]),
        ("node[01-03]", ["node01", "node02", "node03"]),
        ("node[01-02,09],gpu5", ["gpu5", "node01", "node02", "node09"]),
        ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]),
    ],
)
def test_a_node_set_is_expanded_as_slurm_would(text: str, names: list[str]) -> None:
    assert sorted(expand(text)) == names


def test_folding_keeps_the_padding_and_is_undone_by_expanding() -> None:
    names = ["node01", "node02", "node03", "node10"]
    assert fold(names) == "node[01-03,10]"
    assert expand(fold(names)) == names


def test_a_group_is_refused_since_resolving_it_would_run_a_command() -> None:
    with pytest.raises(ValueError, match="is a node group"):
        expand("@compute")


def test_an_unclosed_range_is_named_without_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r'^"node\[07-" has an unclosed range$'):
        expand("login1,node[07-")
