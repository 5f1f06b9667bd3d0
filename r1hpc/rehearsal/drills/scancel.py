"""A person cancels the job."""

from __future__ import annotations

import time

from r1hpc.rehearsal.drills.checks import causes_are, nothing_left, shared_memory, status_is
from r1hpc.rehearsal.drills.moments import at_work
from r1hpc.rehearsal.drills.scene import DrillError, Scene

_GONE_S = 60
_COMPLETE_S = 900
_BACK_S = 8.0
"""Longer than a requeued job waits in the queue."""


def play(scene: Scene) -> str:
    """It stays cancelled and leaves nothing behind; submitted again, the run goes on from its last commit."""
    before = shared_memory(scene)
    job_id = scene.submit()
    at_work(scene)
    scene.cluster.cancel(job_id)
    scene.wait_for_end(_GONE_S, wanted="CANCELLED")
    nothing_left(scene, before)
    time.sleep(_BACK_S)
    job = scene.job()
    if (job["JobState"], job["Restarts"]) != ("CANCELLED", "0"):
        raise DrillError(f"the cancelled job is {job['JobState']} with {job['Restarts']} restarts")
    status_is(scene, "cancelled")
    scene.submit()
    scene.wait_for_end(_COMPLETE_S)
    # Killed outright, as the first may be, its record is closed by the next.
    return causes_are(scene, frozenset({"cancelled", "abandoned"}), "done")
