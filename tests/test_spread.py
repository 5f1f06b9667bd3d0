"""What pytest-xdist keeps on one worker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.spread import FIRST, GROUPS, group_of, turn

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("fixtures", "groups"),
    [("engine_server|engine_url", {"rollout"}), ("slurm4|slurm16|loopback4", {"rehearsal", "submit", "jobs"})],
)
def test_every_file_that_asks_for_a_shared_start_is_in_a_group(fixtures: str, groups: set[str]) -> None:
    asks = re.compile(rf"\b({fixtures}): ")
    files = [file.relative_to(TESTS).as_posix() for file in TESTS.rglob("test_*.py") if asks.search(file.read_text())]
    assert len(files) >= 7
    assert {file: group_of(f"tests/{file}::test") for file in files if group_of(file) not in groups} == {}


def test_other_files_are_groups_of_their_own_and_begin_by_what_they_start() -> None:
    assert group_of("tests/plan/test_fit.py::test_x[a::b]") == "plan/test_fit.py"
    assert [turn(group) for group in FIRST] == list(range(len(FIRST)))
    assert turn("jobs") < turn("actors/test_engines.py") < turn("plan/test_fit.py")


def test_what_is_named_is_there() -> None:
    files = [file for files in GROUPS.values() for file in files] + [group for group in FIRST if group not in GROUPS]
    assert [file for file in files if not (TESTS / file).is_file()] == []
