"""Preempted three times with its rollouts replayed, a run gives the losses and weights of the uninterrupted one."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.commits.names import committed_path
from r1hpc.rehearsal.drills.checks import nothing_left, nothing_lost, shared_memory
from r1hpc.rehearsal.drills.preempt import three_times
from r1hpc.rehearsal.drills.scene import DrillError, Scene
from r1hpc.rundir import RunDir

TRAINED = ("loss/", "train/")
"""What the keys of metrics begin with that only weights and samples decide."""
WEIGHTS = ("*.distcp", "common.pt", "random_states.pt", "trainer.json")
"""Files of a commit: parameters, optimizer, random numbers, steps."""
_COMPLETE_S = 1500


def play(scene: Scene) -> str:
    """Run it once in peace, which records the rollouts unless they are replayed already; then again, preempted."""
    before = shared_memory(scene)
    scene.submit()
    scene.wait_for_end(_COMPLETE_S)
    nothing_left(scene, before)
    again = _again(scene)
    story = three_times(again)
    nothing_left(again, before)
    lost = nothing_lost(again.directory, scene.num_rollout)
    return f"{story}; {same(scene.directory, again.directory, scene.num_rollout)}; {lost}"


def same(one: RunDir, other: RunDir, num_rollout: int) -> str:
    """That two runs trained the same, bit for bit; in words. Raises DrillError with the first difference."""
    lines = [_trained(run) for run in (one, other)]
    for iteration, (mine, theirs) in enumerate(zip(*lines, strict=True)):
        if not any(key.startswith("loss/") for key in mine):
            raise DrillError(f"{one.metrics}: iteration {iteration} has no loss")
        if differing := [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]:
            key = differing[0]
            raise DrillError(
                f"iteration {iteration}: {key} is {mine.get(key)!r} in {one.root.name} and {theirs.get(key)!r} in"
                f" {other.root.name}; {len(differing)} values differ: {', '.join(differing)}"
            )
    first, second = (_hashes(committed_path(run.checkpoints, num_rollout - 1)) for run in (one, other))
    if differing := [name for name in sorted({*first, *second}) if first.get(name) != second.get(name)]:
        raise DrillError(f"after iteration {num_rollout - 1} the commits differ in {', '.join(differing)}")
    return f"losses of {len(lines[0])} iterations and {len(first)} files of the last commit are bitwise the same"


def _again(scene: Scene) -> Scene:
    root = scene.directory.root
    name = f"{root.name}-again"
    settings = [*scene.settings, f"run.name={name}"]
    if scene.directory.rollouts.is_dir():
        settings += [f"debug.replay_rollouts={scene.directory.rollouts}", "debug.save_rollouts=false"]
    return replace(scene, directory=RunDir(root.with_name(name)), settings=settings, job_id="")


def _trained(run: RunDir) -> list[dict[str, Any]]:
    """The values of TRAINED of every iteration."""
    lines = [line for line in Scene.lines(run) if "train/optimizer_step" in line]
    return [{key: value for key, value in line.items() if key.startswith(TRAINED)} for line in lines]


def _hashes(commit: Path) -> dict[str, str]:
    files = sorted(path for pattern in WEIGHTS for path in commit.glob(pattern))
    if not any(path.suffix == ".distcp" for path in files):
        raise DrillError(f"{commit}: holds no weights")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
