"""The driver dies again and again before it commits anything."""

from __future__ import annotations

import os
import signal
from functools import partial

from r1hpc.cluster.requeue import HOLD
from r1hpc.rehearsal.drills.checks import causes_are, status_is
from r1hpc.rehearsal.drills.moments import STARTED_S
from r1hpc.rehearsal.drills.scene import DrillError, Scene

MAX_CRASHES = 2
SETTINGS = (f"run.max_crashes={MAX_CRASHES}",)
_HELD_S = 60
_COMPLETE_S = 900


def play(scene: Scene) -> str:
    """After max_crashes attempts the job is held with the reason; released after mending, it completes."""
    scene.submit()
    for count in range(MAX_CRASHES):
        scene.wait(f"driver {count + 1}", partial(_drives, scene, count + 1), STARTED_S)
        for process in scene.processes("r1hpc.run"):
            os.kill(process.pid, signal.SIGKILL)
    scene.wait("the job is held", lambda: "held" in scene.job().get("Reason", "").lower(), _HELD_S)
    end = scene.record(scene.attempts()[-1].end)
    if end["action"] != HOLD or f"{MAX_CRASHES} attempts without progress" not in end["reason"]:
        raise DrillError(f"the last attempt's end says {end['action']}: {end['reason']}")
    status_is(scene, "held")
    scene.cluster.run(["scontrol", "release", scene.job_id], check=True)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, *["crash"] * MAX_CRASHES, "done")


def _drives(scene: Scene, attempts: int) -> bool:
    return len(scene.attempts()) == attempts and bool(scene.processes("r1hpc.run"))
