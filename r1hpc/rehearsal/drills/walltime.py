"""The time limit comes before the end of the run."""

from __future__ import annotations

import datetime
import time

from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import at_work
from r1hpc.rehearsal.drills.scene import DrillError, Scene

LIMIT_MINUTES, LEAD_MINUTES = 4, 1
SETTINGS = (
    f"slurm.time_limit={LIMIT_MINUTES}",
    f"slurm.signal_lead_minutes={LEAD_MINUTES}",
    "run.mean_hours_between_interruptions=0.05",
)
"""Slurm looks at limits every 30 s, may send its signal 60 s early, and a start on a busy host takes over a minute."""
_COMPLETE_S = 1500
_HELD_S, _FREE_S = 8.0, 0.2


def play(scene: Scene) -> str:
    """The attempt commits and leaves before the limit, by its clock or by the signal, and the next one goes on."""
    scene.submit()
    at_work(scene, iterations=1)
    _slow_down_until(scene, datetime.datetime.fromisoformat(scene.job()["StartTime"]) + _SIGNAL_AFTER)
    scene.wait_for_end(_COMPLETE_S)
    causes = scene.causes()
    if len(causes) < 2:
        raise DrillError(f"the run ended within its {SETTINGS[0]}: set rollout.num_rollout higher")
    return causes_are(scene, *["walltime"] * (len(causes) - 1), "done")


_SIGNAL_AFTER = datetime.timedelta(minutes=LIMIT_MINUTES - LEAD_MINUTES)


def _slow_down_until(scene: Scene, end: datetime.datetime) -> None:
    """Hold the trainers up, so that even a fast host has a few iterations left at the limit; it costs no time of it."""
    while datetime.datetime.now() < end and scene.causes() == ["open"]:
        with scene.hold("ray::Trainer"):
            time.sleep(_HELD_S)
        time.sleep(_FREE_S)
