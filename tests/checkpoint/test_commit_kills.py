"""A run that is killed at any moment of a commit has the commit of before, or the new one; the next attempt goes on."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.commit import Commits, newest_commit
from r1hpc.checkpoint.commits.names import is_leftover
from r1hpc.checkpoint.commits.retention import judge_all
from r1hpc.rollout.state import SamplerState
from tests.checkpoint.saves import commit, committed, save

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir"}
"""Audit events of the interpreter; os.replace and Path.unlink are among them. os.fsync raises none."""
STATE = SamplerState({"epoch": 1, "taken": 320}, 320, ())


def attempt(root: Path) -> None:
    """Sweep, commit iteration 40, sweep: with 10, 20 and 30 there, and two kept."""
    commits = Commits(root, keep=2)
    commits.sweep()
    saved = save(commits.begin(40), 40)
    commits.finish(40, saved, STATE.save, {"run_id": "r1"})
    commits.sweep()


def each_step(step: Callable[[str], None]) -> None:
    """Call `step` before each change of the file system, in this process, for ever.

    Nothing is synced: what a killed process has written stays without.
    """

    def synced(_descriptor: int) -> None:
        step("fsync")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            step(event)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(note)


def in_child(root: Path, die_at: int | None) -> tuple[int, int]:
    """Run `attempt` in a child that is killed at its n-th step; (exit status, steps taken)."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            taken = 0

            def step(_event: str) -> None:
                nonlocal taken
                if taken == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                taken += 1

            each_step(step)
            attempt(root)
            os.write(writes, str(taken).encode())
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    os.close(writes)
    said = os.read(reads, 100)
    os.close(reads)
    return os.waitpid(child, 0)[1], int(said or b"0")


def prepared(root: Path, template: Path) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root)
    return root


def test_killed_at_every_step_there_is_the_old_commit_or_the_new_one(tmp_path: Path) -> None:
    template = tmp_path / "template"
    committed(template, 10, 20, 30)
    root = tmp_path / "checkpoints"
    status, steps = in_child(prepared(root, template), None)
    assert status == 0
    assert steps > 30
    found = []
    for step in range(steps):
        prepared(root, template)
        status, _ = in_child(root, step)
        assert status == signal.SIGKILL, f"step {step}: not killed"
        newest = newest_commit(root)
        assert newest is not None, f"step {step}: no commit is left"
        found.append(newest.iteration)
        # Nothing with the name of a commit is half of one, the ones being removed included.
        assert [one.problem for one in judge_all(root) if one.commit is None] == [], f"step {step}"
        if newest.iteration == 40:
            assert SamplerState.load(newest.directory) == STATE
        resumed = Commits(root, keep=2)
        resumed.sweep()
        left = sorted(name for name in os.listdir(root) if name != ".owner.json")
        assert left == [f"iter_{kept:07d}" for kept in (newest.iteration - 10, newest.iteration)], f"step {step}"
        # The next attempt trains the iteration after its commit, and commits that.
        following = 40 if newest.iteration == 30 else 50
        commit(resumed, following)
        assert resumed.newest() is not None
        assert not any(is_leftover(name) for name in os.listdir(root)), f"step {step}"
    # The new one is there from one moment on, and stays.
    assert set(found) == {30, 40}
    assert found == sorted(found)


def test_nothing_is_published_before_it_is_on_the_disk(tmp_path: Path) -> None:
    """What a power cut leaves: a rename must not outlive the content that it publishes."""
    root = tmp_path / "checkpoints"
    committed(root, 10)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        log: list[str] = []
        fsync = os.fsync

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            status = os.fstat(descriptor)
            log.append(f"fsync {status.st_ino}")

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "os.rename":
                log.append(f"rename {Path(os.fspath(arguments[1])).name}")

        os.fsync = synced  # type: ignore[assignment]
        sys.addaudithook(note)
        try:
            commits = Commits(root, keep=2)
            saved = save(commits.begin(40), 40)
            commits.finish(40, saved, STATE.save, {})
            os.write(writes, "\n".join(log).encode())
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads) as stream:
        log = stream.read().splitlines()
    os.waitpid(child, 0)
    published = log.index("rename iter_0000040")
    target = root / "iter_0000040"
    files = sorted(target.iterdir())
    assert len(files) == 7
    before = {line.removeprefix("fsync ") for line in log[:published] if line.startswith("fsync")}
    assert [file.name for file in files if str(file.stat().st_ino) not in before] == []
    # Its names are on the disk after the last of them was made, and its own name after the rename.
    last_name = max(index for index, line in enumerate(log) if line == "rename COMMITTED.json")
    assert f"fsync {target.stat().st_ino}" in log[last_name:published]
    assert f"fsync {root.stat().st_ino}" in log[published:]
    # COMMITTED.json comes last: everything else was on the disk when it was made.
    early = set(log[:last_name])
    assert [file.name for file in files if f"fsync {file.stat().st_ino}" not in early] == []
    assert SamplerState.load(target) == STATE
