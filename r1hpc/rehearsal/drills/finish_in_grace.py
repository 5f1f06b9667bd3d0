"""The last iteration ends within the grace time of a preemption."""

from __future__ import annotations

from r1hpc.cluster.requeue.texts import parse_time
from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import doing
from r1hpc.rehearsal.drills.preempt import preempt
from r1hpc.rehearsal.drills.scene import DrillError, Scene

GRACE_S = 90
SETTINGS = ("eval.eval_interval=null",)
"""An evaluation after the last iteration would be left to the next attempt."""
_COMPLETE_S = 300
_LEAVE_S = 5.0


def play(scene: Scene) -> str:
    """The run completes; should Slurm run the job again, it leaves in under 5 s and opens no attempt."""
    scene.submit()
    doing(scene, "update", scene.num_rollout - 1)
    preempt(scene)
    scene.wait_for_end(_COMPLETE_S)
    story = causes_are(scene, "done")
    job = scene.job()
    if job["Restarts"] != "0":
        started, ended = parse_time(job["StartTime"]), parse_time(job["EndTime"])
        assert started is not None and ended is not None, "it has ended"
        took_s = ended - started
        if took_s > _LEAVE_S:
            raise DrillError(f"run again, the job of the complete run took {took_s:g} s to leave")
        story += f"; run again, it left in {took_s:g} s"
    return story
