"""A job of a higher priority takes the nodes, at any moment, as often as it likes."""

from __future__ import annotations

import random
import time
from functools import partial

from r1hpc.cluster.requeue.texts import is_preempted
from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import at_work, newest_at_work
from r1hpc.rehearsal.drills.scene import ENDED, Scene

_AWAY_S = 120
_COMPLETE_S = 900
_PREEMPTED_S = 15
_ITERATIONS = 2
"""Of each attempt: without a commit in between, the third preemption would hold the job."""


def preempt(scene: Scene, seconds: int = 1) -> None:
    """Take all nodes of the run away for a while; returns once the other job has had them."""
    other = take_nodes(scene, seconds)
    scene.wait("the higher job runs", lambda: scene.job(other).get("JobState") in ENDED, _AWAY_S)


def take_nodes(scene: Scene, seconds: int = 1) -> str:
    """Submit a job of a higher priority for all nodes of the run; returns its id once Slurm has told the run."""
    command = ["sbatch", "--parsable", "--partition=high", f"--nodes={scene.num_nodes}", "--exclusive"]
    command += ["--output=/dev/null", f"--wrap=sleep {seconds}"]
    # Whoever is fast would be done before Slurm has decided.
    with scene.hold("ray::Trainer"):
        other = scene.cluster.run(command, check=True).stdout.strip()
        scene.wait("the preemption", lambda: is_preempted(scene.job()), _PREEMPTED_S)
    return other


def once(scene: Scene) -> str:
    """Preempted in the middle, it goes on where it was."""
    scene.submit()
    at_work(scene)
    preempt(scene)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, "preempted", "done")


def three_times(scene: Scene) -> str:
    """Preempted again and again at random moments, it still completes."""
    chance = random.Random()
    scene.submit()
    for _ in range(3):
        time.sleep(chance.uniform(0, newest_at_work(scene, _ITERATIONS)))
        before = len(scene.attempts())
        preempt(scene)
        scene.wait("another attempt", partial(_more_attempts, scene, before), _AWAY_S)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, "preempted", "preempted", "preempted", "done")


def _more_attempts(scene: Scene, than: int) -> bool:
    return len(scene.attempts()) > than
