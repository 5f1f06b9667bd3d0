"""What a call of all ranks makes of errors that come one after the other; with futures in place of Ray's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest
from ray import ObjectRef

from r1hpc.actors.answers import Failure
from r1hpc.actors.collective_call import TrainersError, answers
from r1hpc.actors.place import Place

PLACES = [Place(rank, "here", rank, 2, Path("log")) for rank in range(2)]
DEADLINE_S = 30.0


def failure(rank: int) -> Failure:
    return Failure("SyncError", f"weight {rank} is not finite", "", is_for_people=True, is_consequence=False)


async def error_of(late: asyncio.Future[Any], grace_s: float) -> TrainersError:
    """Rank 1 fails at once, rank 0 when `late` says so."""
    soon: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    soon.set_result(failure(1))
    calls = [(place, cast("ObjectRef", each)) for place, each in zip(PLACES, (late, soon), strict=True)]
    with pytest.raises(TrainersError, match="weight 1 is not finite") as raised:
        await answers("weights 3", calls, DEADLINE_S, grace_s)
    return raised.value


def test_a_rank_that_says_its_error_within_the_grace_leaves_all_usable() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        late: asyncio.Future[Any] = loop.create_future()
        loop.call_later(0.2, late.set_result, failure(0))
        assert (await error_of(late, grace_s=DEADLINE_S)).usable

    asyncio.run(work())


def test_a_rank_that_does_not_may_stand_in_a_collective() -> None:
    async def work() -> None:
        assert not (await error_of(asyncio.get_running_loop().create_future(), grace_s=0.1)).usable

    asyncio.run(work())
