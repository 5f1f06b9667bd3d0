"""A job of a higher priority takes the nodes, at any moment, as often as it likes."""

from __future__ import annotations

import random
import time

from r1hpc.rehearsal.drills.checks import causes_are
from r1hpc.rehearsal.drills.moments import at_work
from r1hpc.rehearsal.drills.scene import ENDED, Scene

_AWAY_S = 120
_COMPLETE_S = 900
_SPREAD_S = 20.0


def preempt(scene: Scene, seconds: int = 1) -> None:
    """Take all nodes of the run away for a while; returns once the other job has had them."""
    command = ["sbatch", "--parsable", "--partition=high", f"--nodes={scene.num_nodes}", "--exclusive"]
    command += ["--output=/dev/null", f"--wrap=sleep {seconds}"]
    other = scene.cluster.run(command, check=True).stdout.strip()
    scene.wait("the higher job runs", lambda: scene.job(other).get("JobState") in ENDED, _AWAY_S)


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
    for count in range(3):
        at_work(scene, iterations=count + 1)
        time.sleep(chance.uniform(0, _SPREAD_S))
        preempt(scene)
    scene.wait_for_end(_COMPLETE_S)
    return causes_are(scene, "preempted", "preempted", "preempted", "done")
