"""One of the engines is killed while it generates."""

from __future__ import annotations

import os
import signal

from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import at_work, doing
from r1hpc.rehearsal.drills.scene import Scene

_COMPLETE_S = 900


def play(scene: Scene) -> str:
    """It is restarted and synced while the others serve: no attempt ends, no iteration is lost."""
    scene.submit()
    at_work(scene, iterations=1)
    doing(scene, "rollout", 1)
    scene.wait("an engine's scheduler runs", lambda: scene.processes("sglang::scheduler"), 60)
    victim = min(scene.processes("sglang::scheduler"), key=lambda process: process.pid)
    os.kill(victim.pid, signal.SIGKILL)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, "done")
