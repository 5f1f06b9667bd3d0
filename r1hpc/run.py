"""The driver of one attempt, on the head, a child of the head's agent.

python -m r1hpc.run RUN ATTEMPT --until bring-up|canary|end
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ray.util.placement_group import PlacementGroup

from r1hpc import exit_codes
from r1hpc.actors.collective_call import TrainerLost
from r1hpc.cluster.launch import Launch, read_launch
from r1hpc.cluster.outcome import Outcome
from r1hpc.cluster.ray import Slot, connected, place_slots, wait_for_nodes
from r1hpc.cluster.stop import StopListener
from r1hpc.config import load_config
from r1hpc.config.import_paths import check_import_paths
from r1hpc.errors import BringUpError, CanaryError, ConfigError, R1hpcError
from r1hpc.interrupt import TOLD_S, OutOfTime, StopRequested
from r1hpc.metrics.progress import say_progress
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

if TYPE_CHECKING:  # it loads what a bring-up does without
    from r1hpc.loop import Loop

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Drive the attempt; how that ended goes to driver.json, for the agent."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.run", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--until", choices=("bring-up", "canary", "end"), default="end")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request
    run, attempt = RunDir(arguments.run), AttemptDir(arguments.attempt)
    outcome = _drive(run, attempt, arguments.until, StopListener(sys.stdin))
    logger.info("exit code %d: %s", outcome.exit_code, outcome.reason)
    say_progress(attempt, "ended", detail=outcome.reason)
    publish_json(attempt.driver, outcome.to_json())
    return outcome.exit_code


def _drive(run: RunDir, attempt: AttemptDir, until: str, stop: StopListener) -> Outcome:
    """Drive the attempt to its end, whichever."""
    try:
        launch = read_launch(attempt.launch)
        with connected(launch):
            started = time.monotonic()
            group, slots = bring_up(launch, stop)
            write_placement(attempt.placement, slots)
            up = (
                f"Ray is up on {len(launch.hosts)} nodes and placed on {len(slots)} GPU slots,"
                f" {time.monotonic() - started:.1f} s"
            )
            logger.info("%s", up)
            if until == "bring-up":
                return Outcome(exit_codes.SUCCESS, up)
            return asyncio.run(_train(run, attempt, launch, group, slots, stop, until))
    except R1hpcError as error:
        return outcome_of(error)


async def _train(
    run: RunDir,
    attempt: AttemptDir,
    launch: Launch,
    group: PlacementGroup,
    slots: list[Slot],
    stop: StopListener,
    until: str,
) -> Outcome:
    # Only now: they load what a bring-up does without.
    from r1hpc.canary.canary import canary_if_due
    from r1hpc.wiring import Attempt, wired

    loaded = load_config(run.config)
    check_import_paths(loaded)
    given = Attempt(run, attempt, loaded.config, launch, group, slots, stop)
    passed = await canary_if_due(given, asked=until == "canary")
    if until == "canary":
        assert passed is not None, "it was asked for"
        return Outcome(exit_codes.SUCCESS, passed)
    outcome = None
    try:
        async with wired(given) as loop:
            outcome = await _looped(run, attempt, loop)
            # Now: ending what was started may hang, and the agent waits for that only so long.
            publish_json(attempt.driver, outcome.to_json())
    except Exception:
        if outcome is None:
            raise
        logger.exception("not everything could be ended in order")
    return outcome


async def _looped(run: RunDir, attempt: AttemptDir, loop: Loop) -> Outcome:
    """The loop to its end, whichever; before it is left early, what is trained is committed if that is possible."""
    try:
        await loop.run()
    except Exception as error:
        outcome = outcome_of(error)
        kept = await _kept(loop)
        try:
            if outcome.exit_code == exit_codes.CRASHED:
                # A node that is lost, or taken away, takes its engines and trainers with it: the agents know better.
                await loop.interrupt.hear(TOLD_S, f"after {outcome.reason}")
        except StopRequested as asked:
            outcome = outcome_of(asked)
        return replace(outcome, reason=f"{outcome.reason}; {kept}")
    publish_json(run.done, {"iterations": loop.num_rollout, "attempt": attempt.root.name, "time": time.time()})
    return Outcome(exit_codes.SUCCESS, f"all {loop.num_rollout} iterations are done")


async def _kept(loop: Loop) -> str:
    """Commit what is trained and can be; in words."""
    try:
        return await loop.saving.leave()
    except Exception as error:
        logger.warning("nothing could be committed before leaving", exc_info=error)
        return f"what was trained since the last commit is lost: {error}"


def outcome_of(error: Exception) -> Outcome:
    """How an attempt ends that has met this."""
    told = str(error)
    match error:
        case StopRequested():
            return Outcome(exit_codes.STOP_REQUESTED, told)
        case OutOfTime():
            return Outcome(exit_codes.OUT_OF_TIME, told)
        case CanaryError():
            return Outcome(exit_codes.CANARY_FAILED, told)
        case BringUpError():
            return Outcome(exit_codes.BRING_UP_FAILED, told, error.hosts)
        case ConfigError():
            return Outcome(exit_codes.INVALID, told)
    logger.error("the attempt failed", exc_info=error)
    lost = (error.host,) if isinstance(error, TrainerLost) else ()
    return Outcome(exit_codes.CRASHED, f"{type(error).__name__}: {told}", lost)


def bring_up(launch: Launch, stop: StopListener) -> tuple[PlacementGroup, list[Slot]]:
    """Wait for every host, place one actor on every GPU slot. Raises BringUpError or StopRequested."""

    def wait(seconds: float) -> None:
        if (who := stop.wait(seconds)) is not None:
            raise StopRequested(f"asked to stop by {who} during the bring-up")

    deadline = time.monotonic() + launch.bring_up_timeout_s
    wait_for_nodes(launch.hosts, launch.bring_up_timeout_s, wait)
    logger.info("Ray nodes: %d of %d", len(launch.hosts), len(launch.hosts))
    return place_slots(launch.hosts, deadline - time.monotonic(), wait)


def write_placement(path: Path, slots: list[Slot]) -> None:
    """Publish placement.json: rank, host, gpu and pid of every slot."""
    publish_json(path, [{"rank": rank} | asdict(slot) for rank, slot in enumerate(slots)])


if __name__ == "__main__":
    sys.exit(main())
