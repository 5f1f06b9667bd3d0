"""A node loses its power."""

from __future__ import annotations

from r1hpc.rehearsal.drills.checks import causes_are, status_is
from r1hpc.rehearsal.drills.moments import at_work
from r1hpc.rehearsal.drills.scene import DrillError, Scene

_COMPLETE_S = 900
LOST = frozenset({"node_lost", "bring_up_failed", "requeued_by_slurm", "abandoned"})
"""Who notices first: the head's agent, by the silence, or Slurm. `abandoned`: the batch host itself was lost."""


def play(scene: Scene) -> str:
    """The last node of the run is gone without a word; the run goes on on others."""
    scene.submit()
    at_work(scene)
    nodes = [node["name"] for node in scene.record(scene.attempts()[-1].begin)["nodes"]]
    lost = nodes[-1]
    scene.cluster.power_off(lost)
    scene.wait("another attempt", lambda: len(scene.attempts()) > 1, 180)
    now = [node["name"] for node in scene.record(scene.attempts()[-1].begin)["nodes"]]
    if lost in now:
        raise DrillError(f"{lost} is without power, and the job runs on {', '.join(now)}")
    status_is(scene, "running")
    scene.wait_for_end(_COMPLETE_S)
    return f"{causes_are(scene, LOST, 'done')}; {lost} lost, then on {', '.join(now)}"
