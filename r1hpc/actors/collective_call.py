"""One call to every rank of the trainer: all answers, or one error that names who, where and why."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray import ObjectRef
from ray.exceptions import RayActorError, RayError

from r1hpc.actors.answers import Failure
from r1hpc.actors.place import Place
from r1hpc.errors import R1hpcError

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""After a first failure, for the others to say theirs: the cause may come later than what it led to."""
_REPORT_S = 60.0
_SHOWN = 4


class TrainersError(R1hpcError):
    """Trainers that cannot do what they were asked; names the rank that it began with."""

    usable = False
    """Whether all ranks have answered, so that none is stuck in a collective: they may be asked again."""


class TrainerLost(TrainersError):
    """The process of a rank is gone."""

    def __init__(self, message: str, rank: int, host: str) -> None:
        super().__init__(message)
        self.rank = rank
        self.host = host

    def __reduce__(self) -> tuple[type[TrainerLost], tuple[str, int, str]]:
        return type(self), (str(self), self.rank, self.host)


@dataclass(frozen=True)
class _Fault:
    place: Place
    failure: Failure | RayError

    @property
    def weight(self) -> int:
        """The heavier explains the lighter."""
        if isinstance(self.failure, Failure):
            return 0 if self.failure.is_consequence else 1
        return 2

    def error(self, what: str) -> TrainersError:
        failure, place = self.failure, self.place
        if isinstance(failure, Failure):
            return TrainersError(f"{what}: {place}: {failure.said} (see {place.log})")
        if isinstance(failure, RayActorError):
            text = f"{what}: {place}: its process is gone: {first_line(failure)} (see {place.log})"
            return TrainerLost(text, place.rank, place.host)
        return TrainersError(f"{what}: {place}: {first_line(failure)} (see {place.log})")


async def answers(
    what: str, calls: Sequence[tuple[Place, ObjectRef]], deadline_s: float, grace_s: float = GRACE_S
) -> list[Any]:
    """The answers, in order. Raises TrainersError, of several errors that of the cause; TrainerLost for a dead rank.

    What has not answered by then goes on; nobody waits for it any more.
    grace_s: after an error of a rank, for the others to say theirs; after a death GRACE_S is enough.
    """
    began = time.monotonic()
    found: dict[int, Any] = {}
    faults: list[_Fault] = []
    pending = {asyncio.ensure_future(_answer(reference)): index for index, (_, reference) in enumerate(calls)}
    end, report = began + deadline_s, began + _REPORT_S
    try:
        while pending and time.monotonic() < end:
            timeout = max(0.0, min(end, report) - time.monotonic())
            done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = pending.pop(task)
                answer = task.result()
                if isinstance(answer, Failure | RayError):
                    faults.append(_Fault(calls[index][0], answer))
                    end = min(end, time.monotonic() + (grace_s if isinstance(answer, Failure) else GRACE_S))
                else:
                    found[index] = answer
            if time.monotonic() >= report:
                report += _REPORT_S
                logger.info("%s", _waiting(what, calls, pending.values(), began))
    finally:
        for task in pending:
            task.cancel()
    if faults:
        fault = max(faults, key=lambda fault: fault.weight)  # the first of those
        error = fault.error(what)
        error.usable = not pending and fault.weight < 2
        raise error
    if pending:
        raise TrainersError(_waiting(what, calls, pending.values(), began))
    return [found[index] for index in range(len(calls))]


def first_line(error: Exception) -> str:
    """What a person needs of Ray's errors, which carry paragraphs of advice."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


async def _answer(reference: ObjectRef) -> Any:
    """What a rank returns, or what Ray says in its place."""
    try:
        return await reference
    except RayError as error:
        return error


def _waiting(what: str, calls: Sequence[tuple[Place, ObjectRef]], missing: Any, began: float) -> str:
    """`waiting for load: 14 of 16 ranks after 600 s (missing rank 3 at node02, rank 7 at node04)`"""
    places = [calls[index][0] for index in sorted(missing)]
    rest = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return (
        f"waiting for {what}: {len(calls) - len(places)} of {len(calls)} ranks after {time.monotonic() - began:.0f} s"
        f" (missing {', '.join(map(str, places[:_SHOWN]))}{rest})"
    )
