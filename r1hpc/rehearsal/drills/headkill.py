"""Ray's head process is killed."""

from __future__ import annotations

import os
import signal

from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import at_work
from r1hpc.rehearsal.drills.scene import Scene

_COMPLETE_S = 900


def play(scene: Scene) -> str:
    """All of Ray hangs on it, so the attempt ends at once, everywhere, and the next one goes on."""
    scene.submit()
    at_work(scene)
    scene.wait("the global control store runs", lambda: scene.processes("gcs_server"), 60)
    for process in scene.processes("gcs_server"):
        os.kill(process.pid, signal.SIGKILL)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, frozenset({"node_lost", "bring_up_failed", "crash"}), "done")
