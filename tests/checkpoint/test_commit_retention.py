"""Which commits go, and that none goes in parts, in use, or in place of one that a run would need."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import pytest

from r1hpc.checkpoint.commit import Commits, newest_commit
from r1hpc.checkpoint.commits.prune import prunable
from r1hpc.checkpoint.commits.retention import Judged, judge_all, reading, surplus
from tests.checkpoint.saves import commit, committed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def iterations(root: Path) -> list[int]:
    return [int(path.name.removeprefix("iter_")) for path in sorted(root.glob("iter_*"))]


def damage(root: Path, iteration: int) -> None:
    (root / f"iter_{iteration:07d}/__0_0.distcp").unlink()


def judged(states: str) -> list[Judged]:
    """One for each letter, the newest first: v valid, d damaged, f of another hand, u of which nobody knows."""
    commit_of = {"v": object()}
    return [
        Judged(Path(str(place)), commit_of.get(state), "" if state == "v" else "why", state in "vd")  # type: ignore[arg-type]
        for place, state in enumerate(states)
    ]


@pytest.mark.parametrize(
    ("states", "keep", "gone"),
    [
        ("", 1, ""),
        ("v", 1, ""),
        ("vv", 1, "1"),
        ("vvv", 2, "2"),
        ("vv", 3, ""),
        ("dv", 1, ""),  # newer than the newest valid: stays, to be looked into
        ("dvv", 1, "2"),
        ("vdv", 2, ""),  # a damaged one does not count
        ("vdvd", 2, "3"),
        ("vdvv", 2, "3"),
        ("ddd", 1, ""),  # nothing valid: nothing goes
        ("vf", 1, ""),  # another's
        ("vufv", 1, "3"),
        ("uvv", 1, "2"),
    ],
)
def test_all_that_is_ours_and_older_than_the_newest_valid_ones_goes(states: str, keep: int, gone: str) -> None:
    assert "".join(one.directory.name for one in surplus(judged(states), keep)) == gone


def test_a_sweep_keeps_the_newest_ones(root: Path) -> None:
    committed(root, 10, 20, 30, 40)
    Commits(root, 3).sweep()
    assert iterations(root) == [20, 30, 40]
    Commits(root, 3).sweep()
    assert iterations(root) == [20, 30, 40]


def test_a_damaged_newest_does_not_push_out_the_valid_one(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    commits = committed(root, 10, 20, 30)
    damage(root, 30)
    commits = Commits(root, 1)
    commits.sweep()
    assert iterations(root) == [20, 30]
    commits.sweep()
    # Said once, not at every commit.
    assert sum("iter_0000030: __0_0.distcp is missing" in record.getMessage() for record in caplog.records) == 1
    commit(commits, 40)
    commits.sweep()
    assert iterations(root) == [40]


def test_what_somebody_else_put_there_stays(root: Path) -> None:
    committed(root, 10, 20)
    (root / "iter_0000005").mkdir()
    (root / "iter_0000005/model.pt").touch()
    Commits(root, 1).sweep()
    assert iterations(root) == [5, 20]
    assert (root / "iter_0000005/model.pt").exists()


def test_what_a_link_names_stays(root: Path, tmp_path: Path) -> None:
    committed(root, 10, 20)
    os.rename(root / "iter_0000010", tmp_path / "large")
    (root / "iter_0000010").symlink_to(tmp_path / "large")
    Commits(root, 1).sweep()
    assert iterations(root) == [20]
    assert (tmp_path / "large/COMMITTED.json").exists()


def test_a_commit_that_is_read_goes_later(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    committed(root, 10, 20, 30)
    commits = Commits(root, 1)
    with reading(root / "iter_0000010"), reading(root / "iter_0000010"):
        commits.sweep()
        assert iterations(root) == [10, 30]
        assert all(one.commit for one in judge_all(root))
    assert "iter_0000010 is being read: it stays" in caplog.text
    commits.sweep()
    assert iterations(root) == [30]


def test_leftovers_go_but_not_what_is_being_made(root: Path) -> None:
    commits = committed(root, 10)
    begun = commits.begin(20)
    being_filled = root / f".{begun.name}.0a1b2c3d.saving"
    left = [
        root / ".iter_0000020.00000000.uncommitted",
        root / "..iter_0000020.00000000.uncommitted.0a1b2c3d.saving",
        root / ".iter_0000005.0a1b2c3d.removing",
    ]
    for directory in (being_filled, *left):
        (directory / "deep").mkdir(parents=True)
        (directory / "deep/file").touch()
    begun.mkdir()
    kept = [root / ".hidden", root / "iter_0000007.0a1b2c3d.replaced"]
    for directory in kept:
        directory.mkdir()
    commits.sweep()
    assert not any(directory.exists() for directory in left)
    assert all(directory.exists() for directory in (begun, being_filled, *kept))


def test_a_sweep_beside_a_commit_disturbs_nothing(root: Path) -> None:
    commits = Commits(root, 2)
    stop = threading.Event()
    failures: list[BaseException] = []

    def sweep() -> None:
        try:
            while not stop.is_set():
                commits.sweep()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=sweep)
    thread.start()
    for iteration in range(20):
        commit(commits, iteration)
    stop.set()
    thread.join()
    assert failures == []
    commits.sweep()
    assert iterations(root) == [18, 19]


def test_pruning_spares_what_may_be_in_use(root: Path) -> None:
    committed(root, 10, 20, 30, 40)
    damage(root, 20)
    damage(root, 40)
    (root / "iter_0000030.0a1b2c3d.replaced").mkdir()
    lately = root / ".iter_0000050.0a1b2c3d.uncommitted"
    long_ago = root / ".iter_0000050.1a1b2c3d.uncommitted"
    for directory in (lately, long_ago):
        directory.mkdir()
        (directory / "__0_0.distcp").touch()
    for path in (long_ago / "__0_0.distcp", long_ago):
        os.utime(path, (0, 0))
    os.utime(lately, (0, 0))  # the directory has its files, but they are being written to
    named = {path.name for path, _ in prunable(root, 1)}
    assert named == {"iter_0000020", "iter_0000010", "iter_0000030.0a1b2c3d.replaced", long_ago.name}
    newest = newest_commit(root)
    assert newest is not None
    assert newest.iteration == 30


def test_without_a_valid_commit_pruning_names_no_iteration(root: Path) -> None:
    committed(root, 10, 20)
    damage(root, 10)
    damage(root, 20)
    (root / "iter_0000020.0a1b2c3d.replaced").mkdir()
    assert list(prunable(root, 1)) == []
