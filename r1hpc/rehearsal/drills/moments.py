"""Moments of a run at which a drill strikes, as they can be told from outside."""

from __future__ import annotations

from typing import Any

from r1hpc.rehearsal.drills.scene import DrillError, Scene

STARTED_S = 240
"""From the queue to work: preflight, Ray, engines and weights, on a host that others use as well."""
ITERATION_S = 240


def at_work(scene: Scene, iterations: int = 2) -> None:
    """Wait until so many iterations are recorded; where there are none to come, until the bring-up is under way."""
    if scene.stage == "preflight":
        scene.wait("Ray comes up", lambda: _brings_up(scene), STARTED_S)
        return
    deadline_s = STARTED_S + iterations * ITERATION_S
    scene.wait(f"{iterations} iterations", lambda: _done(scene) or len(scene.iterations()) >= iterations, deadline_s)
    if _done(scene):
        raise DrillError(f"the run was over before iteration {iterations} could be met: set rollout.num_rollout higher")


def newest_at_work(scene: Scene, iterations: int) -> float:
    """Wait until the newest attempt has recorded so many iterations; returns the seconds of its last one."""

    def recorded() -> list[dict[str, Any]]:
        attempts = scene.attempts()
        name = attempts[-1].root.name if attempts else None
        return [line for line in scene.iterations() if line.get("attempt") == name]

    deadline_s = STARTED_S + iterations * ITERATION_S
    ready = lambda: _done(scene) or len(recorded()) >= iterations  # noqa: E731
    scene.wait(f"{iterations} iterations of attempt {len(scene.attempts())}", ready, deadline_s)
    if _done(scene):
        raise DrillError("the run was over before it could be met again: set rollout.num_rollout higher")
    return float(recorded()[-1]["seconds/iteration"])


def doing(scene: Scene, what: str, iteration: int) -> None:
    """Wait until the driver does `what` (rollout, update) in this iteration or a later one."""

    def there() -> bool:
        progress = scene.progress()
        return progress.get("what") == what and (progress.get("iteration") or 0) >= iteration

    scene.wait(f"{what} of iteration {iteration}", there, STARTED_S + (iteration + 1) * ITERATION_S)


def _done(scene: Scene) -> bool:
    return scene.directory.done.exists()


def _brings_up(scene: Scene) -> bool:
    attempts = scene.attempts()
    return bool(attempts) and any(attempts[-1].logs.glob("*-ray.log")) and not attempts[-1].end.exists()
