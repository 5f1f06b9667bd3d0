"""Trainer ranks that a driver on rank 0 drives, as the run's driver drives its actors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from r1hpc.checkpoint.collective import everyones, first_ranks
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncOutcome, SyncOutline, SyncTarget
from r1hpc.sync.publisher import WeightPublisher

Told = TypeVar("Told")
Extra = Callable[..., Any]
"""Something else that all ranks do together; what it returns travels between them."""


class DrivenRanks:
    """All ranks as one, on rank 0; the others are in `obey`. `extras` are other collective things to do, by name."""

    def __init__(
        self,
        senders: Mapping[SyncForm, WeightPublisher],
        extras: Mapping[str, Extra] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        """group: in which rank 0 tells the others what to do; null: the default one."""
        self._senders = senders
        self._group = group
        self._extras = extras or {}
        self._thread = ThreadPoolExecutor(max_workers=1)
        """What is asked before the last answer has come is done after it."""
        self.form = next(iter(senders))
        """In which weights are sent."""
        self.tamper: Callable[[int, list[str | None]], None] | None = None
        """Called with each bucket and its payloads before an engine gets them."""

    def obey(self) -> None:
        """Do what rank 0 says until it is done."""
        while (order := first_ranks(None, self._group)) is not None:
            self._do(*order)

    async def begin_sync(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        outline: SyncOutline = (await self.ask("begin", tuple(targets), full_check))[0]
        return outline

    async def offer(self, bucket: int) -> list[str | None]:
        payloads = await self.ask("offer", bucket)
        if self.tamper is not None:
            self.tamper(bucket, payloads)
        return payloads

    async def end_sync(self) -> list[SyncOutcome]:
        return await self.ask("end")

    async def ask(self, what: str, *arguments: Any) -> list[Any]:
        """What each rank answers."""
        if what in self._extras:
            # The modes of torch that let Megatron run on a CPU are this thread's.
            return self._ask(what, arguments)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, what, arguments)

    def finish(self) -> None:
        """Let the other ranks go."""
        first_ranks(None, self._group)

    def _ask(self, what: str, arguments: tuple[Any, ...]) -> list[Any]:
        first_ranks((self.form, what, arguments), self._group)
        answers = self._do(self.form, what, arguments)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _do(self, form: SyncForm, what: str, arguments: tuple[Any, ...]) -> list[Any]:
        work = self._extras.get(what) or getattr(self._senders[form], what)
        try:
            answer = work(*arguments)
        except Exception as error:
            answer = error.with_traceback(None)  # else this frame and the error would keep each other, and payloads
        return everyones(answer, self._group)


def drive(ranks: DrivenRanks, story: Callable[[DrivenRanks], Coroutine[Any, Any, Told]]) -> Told | None:
    """What the coroutine `story` returns on rank 0; null on the others, who obey it."""
    if dist.get_rank():
        ranks.obey()
        return None
    try:
        return asyncio.run(story(ranks))
    finally:
        ranks.finish()
