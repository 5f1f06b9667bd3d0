"""What must hold after every drill, whatever was broken."""

from __future__ import annotations

import json
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from r1hpc.cluster.scratch import scratch_of_run
from r1hpc.rehearsal.drills.scene import DrillError, Scene
from r1hpc.rehearsal.spec import Kind
from r1hpc.rundir import RunDir

LEFT_S = 10
"""From the end of the job to the last process."""
_STATUS_S = 30
"""In which Slurm shows what has happened to a job."""


def nothing_lost(run: RunDir, num_rollout: int) -> str:
    """Every iteration once and in order, optimizer steps without a gap, no prompt twice in an epoch; in words."""
    if not run.done.exists():
        raise DrillError(f"{run.done} is missing: the run is not complete")
    lines = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    found = [line["iteration"] for line in lines if "iteration" in line]
    if found != list(range(num_rollout)):
        raise DrillError(f"{run.metrics}: iterations {found}, not 0 to {num_rollout - 1}, each once")
    steps = [line["train/optimizer_step"] for line in lines if "iteration" in line]
    gains = {later - earlier for earlier, later in zip([0, *steps], steps, strict=False)}
    if len(gains) != 1 or min(gains) < 1:
        raise DrillError(f"{run.metrics}: optimizer steps {steps} do not rise by the same number each time")
    counts = Counter(trained_prompts(run.rollouts))
    twice = sorted(prompt for prompt, count in counts.items() if count > 1)
    if twice:
        raise DrillError(f"{run.rollouts}: trained on twice: {twice} (epoch, prompt)")
    prompts = f"{len(counts)} prompts, none twice" if counts else "no rollout recorded"
    return f"iterations 0 to {found[-1]} once each, {steps[-1]} optimizer steps, {prompts}"


def trained_prompts(rollouts: Path) -> list[tuple[int, int]]:
    """(epoch, index) of every group in the recorded rollouts, those of an iteration as it was trained last."""
    prompts = []
    for path in sorted(rollouts.glob("rollout_*.npz")):
        # The record is the JSON part of the file; numpy is not needed for it, and not loaded by the rehearsal.
        with zipfile.ZipFile(path) as archive:
            data = archive.read("record.npy")
        header_bytes = int.from_bytes(data[8:10], "little")
        groups = json.loads(data[10 + header_bytes :])["groups"]
        prompts += [(group["prompt"]["epoch"], group["prompt"]["index"]) for group in groups]
    return prompts


def nothing_left(scene: Scene, shared_memory_before: frozenset[str]) -> str:
    """No process of the run, no scratch directory, no segment of shared memory, within LEFT_S; in words."""
    seconds = scene.wait(f"no process is left, but {scene.processes()}", lambda: not scene.processes(), LEFT_S)
    scratch = list(scratch_of_run(scene.run_id))
    if scratch:
        raise DrillError(f"scratch directories are left: {', '.join(map(str, scratch))}")
    new = shared_memory(scene) - shared_memory_before
    if scene.cluster.kind is Kind.NAMESPACE and new:
        raise DrillError(f"shared memory is left: {', '.join(sorted(new))}")
    # Loopback nodes share the host's, in which others may work: nobody can tell whose these are.
    others = f", {len(new)} new segments in the host's /dev/shm" if new else ""
    return f"no process left after {seconds:.1f} s{others}"


def shared_memory(scene: Scene) -> frozenset[str]:
    """What lies in /dev/shm of every node, as NODE-ROOT/NAME."""
    roots = {Path(f"/proc/{pid}/root") for pid, stat in scene.cluster.processes().items() if stat.name == "slurmd"}
    # Loopback nodes share the host's.
    places = {str((root / "dev" / "shm").stat().st_dev): root / "dev" / "shm" for root in roots}
    return frozenset(f"{device}/{entry.name}" for device, place in places.items() for entry in place.iterdir())


def status_is(scene: Scene, wanted: str) -> str:
    """`python -m r1hpc.status` says that the run is in this state, as soon as Slurm tells it; in words."""
    command = [sys.executable, "-m", "r1hpc.status", str(scene.directory.root), "--json"]
    told: dict[str, Any] = {}

    def as_wanted() -> bool:
        done = scene.cluster.run(command, timeout_s=_STATUS_S)
        if not done.stdout:
            raise DrillError(f"python -m r1hpc.status failed: {done.stderr}")
        told.update(json.loads(done.stdout))
        return bool(told["state"] == wanted and told["certain"])

    deadline = time.monotonic() + _STATUS_S
    while not as_wanted():
        if time.monotonic() > deadline:
            raise DrillError(f"the status is {told['state']} ({told['why']}), not {wanted}\n{scene.last_words()}")
        time.sleep(1)
    return f"status: {told['state']}"


def causes_are(scene: Scene, *expected: str | frozenset[str]) -> str:
    """The attempts ended for these causes, in this order; a set allows any of its own. In words."""
    found = scene.causes()
    allowed = [cause if isinstance(cause, frozenset) else frozenset({cause}) for cause in expected]
    if len(found) != len(allowed) or any(cause not in these for cause, these in zip(found, allowed, strict=True)):
        wanted = ", ".join("/".join(sorted(these)) for these in allowed)
        raise DrillError(f"the attempts ended as {', '.join(found)}; expected: {wanted}\n{scene.last_words()}")
    return f"attempts: {', '.join(found)}"
