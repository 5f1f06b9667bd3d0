"""The driver of one attempt, on the head, a child of the head's agent.

python -m r1hpc.run RUN ATTEMPT --until bring-up|canary|end
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from r1hpc import exit_codes
from r1hpc.cluster.launch import Launch, read_launch
from r1hpc.cluster.outcome import Outcome
from r1hpc.cluster.ray import Slot, connected, place_slots, wait_for_nodes
from r1hpc.cluster.stop import StopListener
from r1hpc.config import load_config
from r1hpc.errors import BringUpError, CanaryError, ConfigError, R1hpcError
from r1hpc.interrupt import OutOfTime, StopRequested
from r1hpc.metrics.progress import say_progress
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

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
    except StopRequested as error:
        return Outcome(exit_codes.STOP_REQUESTED, str(error))
    except OutOfTime as error:
        return Outcome(exit_codes.OUT_OF_TIME, str(error))
    except CanaryError as error:
        return Outcome(exit_codes.CANARY_FAILED, str(error))
    except BringUpError as error:
        return Outcome(exit_codes.BRING_UP_FAILED, str(error), error.hosts)
    except ConfigError as error:
        return Outcome(exit_codes.INVALID, str(error))
    except R1hpcError as error:
        logger.exception("the attempt failed")
        return Outcome(exit_codes.CRASHED, f"{type(error).__name__}: {error}")


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

    config = load_config(run.config).config
    given = Attempt(run, attempt, config, launch, group, slots, stop)
    passed = await canary_if_due(given, asked=until == "canary")
    if until == "canary":
        assert passed is not None, "it was asked for"
        return Outcome(exit_codes.SUCCESS, passed)
    async with wired(given) as loop:
        try:
            await loop.run()
        except (StopRequested, OutOfTime) as leaving:
            kept = await loop.saving.leave()
            raise type(leaving)(f"{leaving}; {kept}") from None
        publish_json(run.done, {"iterations": loop.num_rollout, "attempt": attempt.root.name, "time": time.time()})
        return Outcome(exit_codes.SUCCESS, f"all {loop.num_rollout} iterations are done")


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
