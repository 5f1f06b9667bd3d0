"""The commits of a run, as the loop makes them: begun after an update, written while the next rollout is generated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1hpc.actors.trainers import TrainerGroup, TrainersError
from r1hpc.checkpoint.commit import Commit, Commits
from r1hpc.clock import SaveClock
from r1hpc.rollout.recorded import Rollouts
from r1hpc.rollout.state import SamplerState

SAMPLER = "sampler"
"""Directory of the sampler's state in a commit."""


@dataclass(frozen=True)
class _Trained:
    """The iteration that was trained last, and the sampler as it was then: what a commit holds goes together."""

    iteration: int
    sampler: SamplerState


@dataclass(frozen=True)
class _Pending:
    """A commit that is being written."""

    of: _Trained
    began: float
    """Monotonic."""
    begin_s: float
    """What beginning it took."""


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
        self._trained: _Trained | None = None
        self._sampled = False
        """A rollout has ended since: its prompts are taken, and what is committed must not know of that."""
        self._updating = False
        """The weights are no iteration's."""
        self._failed = False
        """To commit once more what could not be committed would fail once more."""
        self.last = last
        """Iteration of the newest commit; None before the first."""
        self._commit_s: float | None = None

    @property
    def pending(self) -> int | None:
        """Iteration whose commit is being written; None where none is."""
        return None if self._pending is None else self._pending.of.iteration

    def take_seconds(self) -> dict[str, float]:
        """`commit`: what the commit took that has become valid since this was asked last; else nothing."""
        taken, self._commit_s = self._commit_s, None
        return {} if taken is None else {"commit": taken}

    def sampled(self) -> None:
        """Take note that a rollout has ended."""
        self._sampled = True

    @contextmanager
    def update(self, iteration: int) -> Iterator[None]:
        """The body trains. If it raises, nothing of this attempt is committed any more, unless all trainers have
        answered: these know whether they still have what was trained before, and refuse to save anything else.
        """
        began = time.monotonic()
        self._updating = True
        try:
            yield
        except TrainersError as error:
            self._updating = not error.usable
            raise
        self._updating = False
        self._clock.updated(time.monotonic() - began)
        self._trained = _Trained(iteration, self._rollouts.state())
        self._sampled = False

    async def commit_if_due(self, *, last: bool) -> None:
        """After an update: begin a commit if it is time for one; `last`: no further iteration follows."""
        assert self._trained is not None, "an update comes first"
        if last or self._clock.is_due(self._trained.iteration):
            await self._begin(self._trained)

    async def finish(self) -> None:
        """Wait until the commit under way, if any, is valid. Has to come before the next update."""
        if self._pending is None:
            return
        await self._complete(self._pending)
        await asyncio.to_thread(self._commits.sweep)

    async def leave(self) -> str:
        """Before leaving early: commit what is trained if there is time for it, else drop what is half written.

        Says in words what is committed.
        """
        if self._trained is None:
            return "nothing was trained in this attempt"
        trained = self._trained
        if trained.iteration == self.last:
            return f"iteration {trained.iteration} is committed"
        if self._updating or self._failed:
            why = "its weights have been changed since" if self._updating else "its commit has failed"
            return f"iteration {trained.iteration} is lost: {why}"
        left, needed = self._clock.seconds_left(), self._clock.save_s(begun=self._begun_s())
        if left is not None and left < needed:
            # Not abandoned in order: that would wait for writers which may be stuck. The next attempt sweeps it.
            return f"iteration {trained.iteration} is lost: {left:.0f} s are left, a commit takes {needed:.0f} s"
        if not self._sampled:
            # A rollout that was broken off has given its prompts back, maybe with responses that it had begun.
            trained = replace(trained, sampler=self._rollouts.state())
        if self._pending is None:
            await self._begin(trained)
        assert self._pending is not None
        await self._complete(replace(self._pending, of=trained))
        return f"iteration {trained.iteration} is committed"

    async def _begin(self, trained: _Trained) -> None:
        began = time.monotonic()
        self._failed = True
        directory = await asyncio.to_thread(self._commits.begin, trained.iteration)
        await self._trainers.begin_save(directory, trained.iteration)
        self._failed = False
        self._pending = _Pending(trained, began, time.monotonic() - began)

    async def _complete(self, pending: _Pending) -> None:
        self._pending, self._failed = None, True
        saved = await self._trainers.finish_save()
        written = time.monotonic()

        def write_rest(directory: Path) -> None:
            target = directory / SAMPLER
            target.mkdir()
            pending.of.sampler.save(target)

        iteration = pending.of.iteration
        record = self._record | {"weight_version": iteration + 1, "clock": self._clock.state()}
        commit = await asyncio.to_thread(self._commits.finish, iteration, saved, write_rest, record)
        self._failed = False
        now = time.monotonic()
        # Without the time in which the trainers had written and nobody had asked: a rollout lasts longer than a save.
        self._commit_s = pending.begin_s + saved.seconds + now - written
        self._clock.saved(iteration, self._commit_s, begun=now - pending.began)
        self.last = iteration
        self._committed(commit)

    def _begun_s(self) -> float:
        """For how long the commit under way is being written."""
        return 0.0 if self._pending is None else time.monotonic() - self._pending.began
