"""The canary of an attempt, from the cut to the verdict."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass, replace

from r1hpc.actors.collective_call import TrainersError
from r1hpc.actors.engines import EngineError
from r1hpc.canary.advice import advice
from r1hpc.canary.bound import mismatch_bound
from r1hpc.canary.cycle import cycle
from r1hpc.canary.passed import digest, has_passed, is_wanted, subject
from r1hpc.canary.verdict import Iterated, findings
from r1hpc.config import load_config
from r1hpc.errors import CanaryError, R1hpcError
from r1hpc.interrupt import TOLD_S, Interrupt, OutOfTime, StopRequested
from r1hpc.metrics.progress import read_progress, say_progress
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.publish import publish_json
from r1hpc.wiring import Attempt, wired

logger = logging.getLogger(__name__)

START_S = 1200.0
"""For all engines, and then for all trainers, to come up: compilers are slow the first time, and the model is small."""
DEADLINE_S = 3600.0
"""For all of it: what hangs this long hangs for ever."""


@dataclass
class _Step:
    """Where the canary is."""

    name: str = "preparing"
    iteration: int | None = None

    def __str__(self) -> str:
        return self.name if self.iteration is None else f"{self.name} (iteration {self.iteration})"


async def canary_if_due(attempt: Attempt, *, asked: bool = False) -> str | None:
    """Try the canary where the configuration wants it and it has not passed yet; says how it went, None without one.

    asked: somebody wants it now, whatever the configuration says and has passed. Raises CanaryError, StopRequested.
    """
    if not asked and not is_wanted(attempt.config):
        return None
    place = attempt.run.canary
    speaks_for = await asyncio.to_thread(subject, attempt.config, place)
    if not asked and has_passed(place, speaks_for):
        logger.info("the canary of this configuration, model and versions has passed: %s", place.passed)
        return None
    place.passed.unlink(missing_ok=True)
    began = time.monotonic()
    iterated = await _try(attempt)
    bound = mismatch_bound(attempt.config, read_model_shape(place.model))
    if wrong := findings(iterated, bound):
        raise _error(attempt, _Step(wrong[0].step), "\n".join(finding.text for finding in wrong))
    seconds = time.monotonic() - began
    mismatches = [one.mismatch_abs for one in iterated]
    record = {"digest": digest(speaks_for), "subject": speaks_for, "attempt": attempt.directory.root.name}
    publish_json(place.passed, record | {"mismatch_abs": mismatches, "seconds": seconds, "time": time.time()})
    told = ", ".join(f"{mismatch:.1e}" for mismatch in mismatches if mismatch is not None)
    verdict = f"the canary passed in {seconds:.0f} s: log-probs differ by {told}, bound {bound.value:g} ({bound.why})"
    logger.info("%s", verdict)
    return verdict


async def _try(attempt: Attempt) -> list[Iterated]:
    step = _Step()
    directory = attempt.directory.canary
    directory.logs.mkdir(parents=True, exist_ok=True)
    say_progress(attempt.directory, "canary", detail=f"see {directory.progress}")
    try:
        async with asyncio.timeout(DEADLINE_S):
            return await _cycle(attempt, step)
    except (StopRequested, OutOfTime):
        raise
    except TimeoutError:
        raise _error(attempt, step, f"not over after {DEADLINE_S:.0f} s") from None
    except R1hpcError as error:
        if step.name == "starting":
            step.name = _what_started(attempt, error)
        if step.name != "preparing":
            logger.error(
                "the canary failed while %s; if a node was lost, its agent's silence tells within %g s: %s",
                step,
                TOLD_S,
                error,
            )
            # A lost node takes its engines and trainers with it: no fault of the canary's.
            await Interrupt(attempt.stop).hear(TOLD_S, "while the canary failed")
        raise _error(attempt, step, str(error)) from error


async def _cycle(attempt: Attempt, step: _Step) -> list[Iterated]:
    directory = attempt.directory.canary
    place = attempt.run.canary

    def begin(name: str, iteration: int | None = None) -> None:
        step.name, step.iteration = name, iteration
        logger.info("canary: %s", step)
        say_progress(directory, name, iteration)

    begin("preparing")
    await Interrupt(attempt.stop).unless(_prepared(attempt), "while the canary was prepared")
    config = load_config(place.run.config).config
    begin("starting")
    async with wired(replace(attempt, run=place.run, directory=directory, config=config, start_s=START_S)) as loop:
        iterated = await cycle(loop, begin)
        begin("closing")
    return iterated


async def _prepared(attempt: Attempt) -> None:
    """Cut and convert in a process of its own; see r1hpc.canary.prepare."""
    command = [sys.executable, "-m", "r1hpc.canary.prepare", str(attempt.run.root)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()  # whatever it has written stays, and is gone on with
        await process.wait()
        raise
    if process.returncode:
        raise CanaryError(said.decode(errors="replace").strip() or f"it ended with {process.returncode}")


def _what_started(attempt: Attempt, error: R1hpcError) -> str:
    if isinstance(error, EngineError):
        return "starting engines"
    if read_progress(attempt.directory.canary).get("what") == "loading":
        return "loading"
    return "starting trainers" if isinstance(error, TrainersError) else "starting"


def _error(attempt: Attempt, step: _Step, said: str) -> CanaryError:
    return CanaryError(
        f"the canary failed while {step}: {said}\n"
        f"logs: {attempt.directory.canary.logs}; of the run itself nothing was started\n{advice(attempt.config)}"
    )
