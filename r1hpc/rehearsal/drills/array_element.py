"""The last element of an array of runs fails: its job id is the array's own."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

from r1hpc.rehearsal.drills.layouts import ONE_NODE
from r1hpc.rehearsal.drills.moments import STARTED_S
from r1hpc.rehearsal.drills.scene import ENDED, DrillError, Scene
from r1hpc.rundir import RunDir

VALUES = ("0.24", "0.28")
SETTINGS = ONE_NODE
"""Two of them at once fit on a private Slurm of a laptop."""
_COMPLETE_S = 240


def play(scene: Scene) -> str:
    """It alone runs again; the others do not."""
    array = scene.submit(options=["--sweep", f"grpo.eps_clip_high={','.join(VALUES)}"])
    last = replace(scene, directory=_element(scene, VALUES[-1]))
    scene.wait("the last element's driver", lambda: last.attempts() and last.processes("r1hpc.run"), STARTED_S)
    for process in last.processes("r1hpc.run"):
        os.kill(process.pid, signal.SIGKILL)
    jobs = [f"{array}_{index}" for index in range(len(VALUES))]
    scene.wait("every element ends", lambda: all(scene.job(job).get("JobState") in ENDED for job in jobs), _COMPLETE_S)
    found = [(scene.job(job)["JobState"], scene.job(job)["Restarts"]) for job in jobs]
    if found != [("COMPLETED", "0"), ("COMPLETED", "1")]:
        raise DrillError(f"elements (state, restarts): {found}; only the last was to run again\n{last.last_words()}")
    if last.causes() != ["crash", "done"]:
        raise DrillError(f"the last element's attempts ended as {', '.join(last.causes())}; expected: crash, done")
    return "the last element ran twice, the first once"


def _element(scene: Scene, value: str) -> RunDir:
    root = scene.directory.root
    return RunDir(root.with_name(f"{root.name}.eps_clip_high-{value}"))
