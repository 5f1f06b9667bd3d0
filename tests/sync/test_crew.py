"""Ranks that go through a sync among themselves: who does what, in which thread, and what a failure leaves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest
import torch.distributed as dist

from r1hpc.sync.crew import Crew
from r1hpc.sync.outline import SyncError, SyncOutcome, SyncOutline, SyncTarget
from r1hpc.sync.publisher import WeightPublisher
from tests.forked_ranks import fork_ranks, join_gloo

RANKS = 3
DEADLINE_S = 60.0
TEXTS = [["snow \N{SNOWMAN}", None, "c" * 100_000], ["", "b", None]]
"""[bucket][rank]"""

Story = Callable[[Crew], Any]


class NotedPublisher:
    """One rank's part, as far as a crew calls it."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self._fail_at = fail_at

    def begin(self, targets: Sequence[SyncTarget], full_check: bool) -> SyncOutline:
        self._note(f"begin {targets[0].name} {full_check}")
        return SyncOutline(len(TEXTS), 0, 0, ())

    def offer(self, bucket: int) -> str | None:
        self._note(f"offer {bucket}")
        if bucket == self._fail_at:
            raise SyncError(f"payload {bucket} cannot be made")
        return TEXTS[bucket][dist.get_rank()]

    def end(self) -> SyncOutcome:
        self._note("end")
        return SyncOutcome((f"fault of {dist.get_rank()}",))

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.get_ident())


def played(tmp_path: Path, story: Story, fail_at: int | None = None) -> list[tuple[Any, list[str], bool]]:
    """By rank: what came of it, the calls, and whether all were made in the thread that led or followed."""

    def on_rank(rank: int) -> tuple[Any, list[str], bool]:
        join_gloo(rank, RANKS, tmp_path / "meeting", DEADLINE_S)
        publisher = NotedPublisher(fail_at)
        crew = Crew(cast("WeightPublisher", publisher))
        told = _led(crew, story) if rank == 0 else _followed(crew)
        dist.barrier()
        dist.destroy_process_group()
        return told, publisher.calls, publisher.threads <= {threading.get_ident()}

    return fork_ranks(on_rank, RANKS, DEADLINE_S)


def _led(crew: Crew, story: Story) -> Any:
    try:
        return crew.lead(story)
    except SyncError as error:
        return str(error)


def _followed(crew: Crew) -> str | None:
    try:
        crew.follow()
    except SyncError as error:
        return str(error)
    return None


def test_the_first_rank_has_the_answers_of_all_and_each_does_the_same_in_its_own_thread(tmp_path: Path) -> None:
    async def story(crew: Crew) -> Any:
        outline = await crew.begin_sync([SyncTarget("e", (0, 2))], True)
        offers = [asyncio.create_task(crew.offer(bucket)) for bucket in range(outline.buckets)]
        return [await offer for offer in offers], [outcome.faults for outcome in await crew.end_sync()]

    found = played(tmp_path, story)
    assert found[0][0] == (TEXTS, [(f"fault of {rank}",) for rank in range(RANKS)])
    assert [told for told, _, _ in found[1:]] == [None, None]
    assert [calls for _, calls, _ in found] == [["begin e True", "offer 0", "offer 1", "end"]] * RANKS
    assert all(in_place for _, _, in_place in found)


def test_what_every_rank_raises_ends_all_parts_and_nothing_asked_for_early_is_begun(tmp_path: Path) -> None:
    async def story(crew: Crew) -> None:
        outline = await crew.begin_sync([SyncTarget("e", (0,))])
        offers = [asyncio.create_task(crew.offer(bucket)) for bucket in range(outline.buckets)]
        try:
            await asyncio.gather(*offers, return_exceptions=True)
            await offers[1]
        finally:
            assert await crew.end_sync() == []

    found = played(tmp_path, story, fail_at=0)
    assert [told for told, _, _ in found] == ["payload 0 cannot be made"] * RANKS
    assert [calls for _, calls, _ in found] == [["begin e False", "offer 0"]] * RANKS


def test_what_the_ranks_raise_is_raised_even_where_nobody_looked_at_it(tmp_path: Path) -> None:
    async def story(crew: Crew) -> str:
        await crew.begin_sync([SyncTarget("e", (0,))])
        await asyncio.gather(crew.offer(0), return_exceptions=True)
        return "as if all were well"

    found = played(tmp_path, story, fail_at=0)
    assert [told for told, _, _ in found] == ["payload 0 cannot be made"] * RANKS


def test_what_the_first_rank_alone_raises_lets_the_others_go(tmp_path: Path) -> None:
    async def story(crew: Crew) -> None:
        await crew.begin_sync([SyncTarget("e", (0,))])
        raise SyncError("an engine is gone")

    found = played(tmp_path, story)
    assert [told for told, _, _ in found] == ["an engine is gone", None, None]
    assert [calls for _, calls, _ in found] == [["begin e False"]] * RANKS


@pytest.mark.parametrize("cancel", [True, False])
def test_an_order_that_nobody_waits_for_any_more_is_not_begun(tmp_path: Path, cancel: bool) -> None:
    async def story(crew: Crew) -> None:
        await crew.begin_sync([SyncTarget("e", (0,))])
        began, may_go_on = threading.Event(), threading.Event()

        def busy() -> None:
            began.set()
            assert may_go_on.wait(DEADLINE_S)

        crew._orders.put((busy, Future()))
        await asyncio.to_thread(began.wait, DEADLINE_S)
        offer = asyncio.create_task(crew.offer(0))
        await asyncio.sleep(0)
        if cancel:
            offer.cancel()
            await asyncio.wait({offer})
        may_go_on.set()
        await asyncio.wait({offer})
        await crew.end_sync()

    found = played(tmp_path, story)
    middle = [] if cancel else ["offer 0"]
    assert [calls for _, calls, _ in found] == [["begin e False", *middle, "end"]] * RANKS
