"""The composition root: the driver of one attempt, on the head, a child of the head's agent.

python -m r1hpc.run RUN ATTEMPT --until bring-up|end
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.launch import Launch, read_launch
from r1hpc.cluster.outcome import Outcome
from r1hpc.cluster.ray import Slot, connected, place_slots, wait_for_nodes
from r1hpc.cluster.stop import StopListener
from r1hpc.errors import BringUpError, R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

logger = logging.getLogger(__name__)


class StopRequested(R1hpcError):
    """Somebody asked the attempt to stop."""


def main(argv: list[str] | None = None) -> int:
    """Drive the attempt; how that ended goes to driver.json, for the agent."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.run", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--until", choices=("bring-up", "end"), default="end")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    run, attempt = RunDir(arguments.run), AttemptDir(arguments.attempt)
    outcome = _drive(run, attempt, arguments.until, StopListener(sys.stdin))
    logger.info("exit code %d: %s", outcome.exit_code, outcome.reason)
    publish_json(attempt.driver, outcome.to_json())
    return outcome.exit_code


def _drive(run: RunDir, attempt: AttemptDir, until: str, stop: StopListener) -> Outcome:
    """Drive the attempt to its end, whichever."""
    try:
        if until == "end":
            raise R1hpcError(
                "this version brings Ray up and has no training loop yet: submit --stage preflight (--until bring-up)"
            )
        launch = read_launch(attempt.launch)
        with connected(launch):
            started = time.monotonic()
            slots = bring_up(launch, stop)
            write_placement(attempt.placement, slots)
            took = time.monotonic() - started
        return Outcome(
            exit_codes.SUCCESS,
            f"Ray is up on {len(launch.hosts)} nodes and placed on {len(slots)} GPU slots, {took:.1f} s",
        )
    except StopRequested as error:
        return Outcome(exit_codes.STOP_REQUESTED, str(error))
    except BringUpError as error:
        return Outcome(exit_codes.BRING_UP_FAILED, str(error), error.hosts)
    except R1hpcError as error:
        return Outcome(exit_codes.INVALID, str(error))


def bring_up(launch: Launch, stop: StopListener) -> list[Slot]:
    """Wait for every host, place one actor on every GPU slot. Raises BringUpError or StopRequested."""

    def wait(seconds: float) -> None:
        if (who := stop.wait(seconds)) is not None:
            raise StopRequested(f"asked to stop by {who} during the bring-up")

    deadline = time.monotonic() + launch.bring_up_timeout_s
    wait_for_nodes(launch.hosts, launch.bring_up_timeout_s, wait)
    logger.info("Ray nodes: %d of %d", len(launch.hosts), len(launch.hosts))
    _, slots = place_slots(launch.hosts, deadline - time.monotonic(), wait)
    return slots


def write_placement(path: Path, slots: list[Slot]) -> None:
    """Publish placement.json: rank, host, gpu and pid of every slot."""
    publish_json(path, [{"rank": rank} | asdict(slot) for rank, slot in enumerate(slots)])


if __name__ == "__main__":
    sys.exit(main())
