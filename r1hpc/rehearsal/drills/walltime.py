"""The time limit comes before the end of the run."""

from __future__ import annotations

from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.scene import DrillError, Scene

SETTINGS = ("slurm.time_limit=3", "slurm.signal_lead_minutes=1", "run.mean_hours_between_interruptions=0.05")
"""Slurm looks at limits every 30 s, and may send its signal 60 s early: less than 3 minutes leave none."""
_COMPLETE_S = 1500


def play(scene: Scene) -> str:
    """The attempt commits and leaves before the limit, by its clock or by the signal, and the next one goes on."""
    scene.submit()
    scene.wait_for_end(_COMPLETE_S)
    causes = scene.causes()
    if len(causes) < 2:
        raise DrillError(f"the run ended within its {SETTINGS[0]}: set rollout.num_rollout higher")
    return causes_are(scene, *["walltime"] * (len(causes) - 1), "done")
