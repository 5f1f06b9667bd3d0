"""The commits of a run, as the loop makes them: begun after an update, written while the next rollout is generated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.actors.trainers import TrainerGroup
from r1hpc.checkpoint.commit import Commit, Commits
from r1hpc.clock import SaveClock
from r1hpc.rollout.recorded import Rollouts
from r1hpc.rollout.state import SamplerState

SAMPLER = "sampler"
"""Directory of the sampler's state in a commit."""


@dataclass(frozen=True)
class _Pending:
    """A commit that is being written."""

    iteration: int
    sampler: SamplerState
    began: float


class Saving:
    """Decides when to commit, and does it. At most one commit is under way."""

    def __init__(
        self,
        commits: Commits,
        trainers: TrainerGroup,
        rollouts: Rollouts,
        clock: SaveClock,
        record: Mapping[str, Any],
        committed: Callable[[Commit], None],
        last: int | None = None,
    ) -> None:
        """`record` goes into every commit: run, configuration. `committed` is told of each that is valid now. `last`:
        iteration of the commit that the attempt goes on from."""
        self._commits = commits
        self._trainers = trainers
        self._rollouts = rollouts
        self._clock = clock
        self._record = dict(record)
        self._committed = committed
        self._pending: _Pending | None = None
        self._trained: int | None = None
        """Iteration that was trained last, in this attempt."""
        self.last = last
        """Iteration of the newest commit; None before the first."""

    @property
    def pending(self) -> int | None:
        """Iteration whose commit is being written; None where none is."""
        return None if self._pending is None else self._pending.iteration

    async def trained(self, iteration: int, *, last: bool) -> None:
        """Take note of an update, and begin a commit if one is due; `last`: no further iteration follows."""
        self._trained = iteration
        if last or self._clock.is_due(iteration):
            await self._begin(iteration)

    async def finish(self) -> None:
        """Wait until the commit under way, if any, is valid. Has to come before the next update."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        saved = await self._trainers.finish_save()

        def write_rest(directory: Path) -> None:
            target = directory / SAMPLER
            target.mkdir()
            pending.sampler.save(target)

        record = self._record | {"weight_version": pending.iteration + 1, "clock": self._clock.state()}
        commit = await asyncio.to_thread(self._commits.finish, pending.iteration, saved, write_rest, record)
        self._clock.saved(pending.iteration, time.monotonic() - pending.began)
        self.last = pending.iteration
        self._committed(commit)
        await asyncio.to_thread(self._commits.sweep)

    async def leave(self) -> str:
        """Before leaving early: commit what is trained if there is time for it, else drop what is half written.

        Says in words what is committed.
        """
        if self._trained is None:
            return "nothing was trained in this attempt"
        if self._trained == self.last:
            return f"iteration {self._trained} is committed"
        left, needed = self._clock.seconds_left(), self._clock.save_s(begun=self._begun_s())
        if left is not None and left < needed:
            # Not abandoned in order: that would wait for writers which may be stuck. The next attempt sweeps it.
            return f"iteration {self._trained} is lost: {left:.0f} s are left, a commit takes {needed:.0f} s"
        if self._pending is None:
            await self._begin(self._trained)
        await self.finish()
        return f"iteration {self._trained} is committed"

    async def _begin(self, iteration: int) -> None:
        began = time.monotonic()
        directory = await asyncio.to_thread(self._commits.begin, iteration)
        await self._trainers.begin_save(directory, iteration)
        self._pending = _Pending(iteration, self._rollouts.state(), began)

    def _begun_s(self) -> float:
        """For how long the commit under way is being written."""
        return 0.0 if self._pending is None else time.monotonic() - self._pending.began
