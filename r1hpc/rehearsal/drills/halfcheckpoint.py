"""Everything is killed while a checkpoint is being written."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from r1hpc.checkpoint.commits.names import COMMITTED, is_leftover, iteration_of
from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import ITERATION_S, at_work
from r1hpc.rehearsal.drills.scene import DrillError, Scene

SETTINGS = ("ckpt.save_interval=1",)
_COMPLETE_S = 900


def play(scene: Scene) -> str:
    """The half-written one is never chosen nor kept: the next attempt begins from the commit before it."""
    scene.submit()
    at_work(scene, iterations=1)
    half: list[Path] = []

    def is_written() -> bool:
        half[:] = _unfinished(scene)
        return bool(half and _committed(scene))

    scene.wait("a commit is being written", is_written, 2 * ITERATION_S)
    newest = max(_committed(scene))
    for process in scene.processes():
        if process.node is not None:  # what agents started: trainers, engines, driver
            os.kill(process.pid, signal.SIGKILL)
    scene.wait("another attempt", lambda: len(scene.attempts()) > 1, 120)
    scene.wait_for_end(_COMPLETE_S)
    if left := [path for path in half if path.exists()]:
        raise DrillError(f"of the killed save are left: {', '.join(map(str, left))}")
    if torn := [path for path in _commits(scene) if not (path / COMMITTED).exists()]:
        raise DrillError(f"without {COMMITTED}: {', '.join(map(str, torn))}")
    story = causes_are(scene, frozenset({"node_lost", "crash"}), "done")
    return f"{story}; killed writing {half[0].name}, on from {newest}"


def _commits(scene: Scene) -> list[Path]:
    return [path for path in scene.directory.checkpoints.glob("*") if iteration_of(path.name) is not None]


def _committed(scene: Scene) -> list[str]:
    return [path.name for path in _commits(scene) if (path / COMMITTED).exists()]


def _unfinished(scene: Scene) -> list[Path]:
    """Directories in which a commit is being made."""
    return [path for path in scene.directory.checkpoints.glob(".*") if is_leftover(path.name)]
