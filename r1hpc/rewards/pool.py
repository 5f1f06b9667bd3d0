"""Rewards for many responses at a time, none of which can hold up the others.

Two lanes. In the quick lane a worker has a twentieth of a second; nearly every answer needs a hundredth of that. One
that is not done by then goes to the patient lane and the quick lane takes a new worker, which is a fork away. In the
patient lane it may work on, at low priority, until its time limit; if all places there are taken it is killed and
starts anew when one is free. Custom functions, whose cost is unknown, go to the patient lane at once, so each is called
once a response.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from r1hpc.rewards.frames import Message
from r1hpc.rewards.kinds import BUILT_IN, is_custom
from r1hpc.rewards.request import Outcome, RewardError, RewardRequest, Score
from r1hpc.rewards.workers import Answer, Worker, Workers

_LOG = logging.getLogger(__name__)
QUICK_S = 0.02
_MAX_BATCH = 8
_MIN_SCORED = 64
_MAX_ERROR_SHARE = 0.5


@dataclass(frozen=True)
class _Job:
    question: Message
    answer: asyncio.Future[Answer]


@dataclass(frozen=True)
class _Begun:
    """A job that a worker is at."""

    job: _Job
    worker: Worker
    answer: asyncio.Future[Answer]
    begun: float


class RewardPool:
    """Grades in processes that can be killed; an async context manager.

    kinds: the rewards it is made for; a custom function must be among them, built-in ones are merely loaded beforehand.
    num_workers: answers graded at once in each of the two lanes.
    timeout_s: wall-clock limit of one call of a reward. memory_mb: what a call may allocate.
    max_waiting: further calls of score() wait their turn outside, so a flood costs no memory here.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        *,
        num_workers: int = 2,
        timeout_s: float = 5.0,
        memory_mb: int = 1024,
        max_waiting: int = 4096,
    ) -> None:
        self._kinds = tuple(kinds)
        self._num_workers = num_workers
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._room = asyncio.Semaphore(max_waiting)
        self._quick: asyncio.Queue[_Job] = asyncio.Queue()
        self._slow: asyncio.Queue[_Job | _Begun] = asyncio.Queue()
        self._num_patient_idle = 0
        self._unanswered: set[asyncio.Future[Answer]] = set()
        self._lanes: list[asyncio.Task[None]] = []
        self._broken: str | None = "it was not started"
        self.outcomes: Counter[Outcome] = Counter()
        """Of all responses scored."""

    async def start(self) -> None:
        """Start the processes; takes seconds, for sympy is imported. Raises RewardError if a kind does not load."""
        for kind in self._kinds:
            _check_kind(kind, self._kinds)
        self._workers = Workers(self._kinds, self._memory_mb, num_idle=self._num_workers + 1)
        await self._workers.start()
        self._broken = None
        self._workers.lost.add_done_callback(self._on_lost)
        for lane in (self._run_quick, self._run_patient):
            self._lanes += [asyncio.create_task(lane()) for _ in range(self._num_workers)]
        for task in self._lanes:
            task.add_done_callback(self._on_lane_ended)

    async def close(self) -> None:
        """End every process. Calls of score() that still wait raise RewardError."""
        self._break("it was closed")
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        await self._workers.close()

    async def __aenter__(self) -> RewardPool:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def score(self, request: RewardRequest) -> Score:
        """The reward of one response.

        Raises RewardError if it cannot be graded at all: an unknown kind, no label where one is needed, a pool that is
        closed or has lost its processes, or a reward that fails for more than half of all responses.
        """
        kind = self._kind_of(request)
        answer = await self._answer(_question(kind, [request], group=False), patient=is_custom(kind))
        return self._count(_scores(answer, 1))[0]

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """The rewards of all responses to one prompt, in order; a custom function is called once with all of them.

        Raises RewardError as score() does.
        """
        kinds = {self._kind_of(request) for request in requests}
        if len(kinds) > 1:
            raise RewardError(f"a group is of one prompt and has one reward; this one has {', '.join(sorted(kinds))}")
        if not any(map(is_custom, kinds)):
            return list(await asyncio.gather(*map(self.score, requests)))
        answer = await self._answer(_question(kinds.pop(), requests, group=True), patient=True)
        return self._count(_scores(answer, len(requests)))

    def _kind_of(self, request: RewardRequest) -> str:
        kind = request.kind
        if not is_custom(kind):
            kind = request.metadata.get("rm_type") or kind
        _check_kind(kind, self._kinds)
        if request.label is None and not is_custom(kind):
            raise RewardError(f"the reward {kind} compares with a label and a prompt has none; see label_key")
        return kind

    async def _answer(self, question: Message, patient: bool) -> Answer:
        async with self._room:
            if self._broken is not None:
                raise RewardError(f"the reward pool cannot grade: {self._broken}")
            job = _Job(question, asyncio.get_running_loop().create_future())
            self._unanswered.add(job.answer)
            job.answer.add_done_callback(self._unanswered.discard)
            if patient:
                self._slow.put_nowait(job)
            else:
                self._quick.put_nowait(job)
            return await job.answer

    async def _run_quick(self) -> None:
        jobs: list[_Job] = []
        while True:
            jobs = jobs or await self._next_jobs()
            jobs = await self._try(jobs)

    async def _next_jobs(self) -> list[_Job]:
        """What waits, up to a batch, but no more than this lane's share."""
        jobs = [await self._quick.get()]
        share = min(_MAX_BATCH, -(-self._quick.qsize() // self._num_workers))
        jobs += [self._quick.get_nowait() for _ in range(share - 1)]
        return [job for job in jobs if not job.answer.done()]  # their callers were cancelled

    async def _try(self, jobs: Sequence[_Job]) -> list[_Job]:
        """Grade a batch; returns those that were not reached because one before them is slow or ended the worker."""
        if not jobs:
            return []
        batch = await self._begin(jobs)
        for begun in batch:
            if not begun.answer.done():
                await asyncio.wait((begun.answer,), timeout=QUICK_S)
            if not begun.answer.done():
                break
        worker = batch[0].worker
        unanswered = [begun for begun in batch if not self._finish(begun)]
        if unanswered and worker.alive:
            self._postpone(unanswered.pop(0))
        else:
            self._workers.give_back(worker)
        return [begun.job for begun in unanswered]

    def _postpone(self, begun: _Begun) -> None:
        """Move it to the patient lane: with its worker if there is a place, else to start anew later."""
        if self._slow.qsize() < self._num_patient_idle:
            self._workers.set_aside(begun.worker)
            self._slow.put_nowait(begun)
        else:
            self._workers.end(begun.worker)
            self._slow.put_nowait(begun.job)

    async def _run_patient(self) -> None:
        while True:
            self._num_patient_idle += 1
            job = await self._slow.get()
            self._num_patient_idle -= 1
            if isinstance(job, _Begun):
                await self._see_through(job)
            elif not job.answer.done():
                [begun] = await self._begin([job])
                await self._see_through(begun)

    async def _see_through(self, begun: _Begun) -> None:
        """Give an answer the time up to its limit; its worker is not used again if it was set aside or is stuck."""
        left_s = begun.begun + self._timeout_s - asyncio.get_running_loop().time()
        await asyncio.wait((begun.answer,), timeout=max(left_s, 0.0))
        if not begun.answer.done():
            begun.answer.set_result(Answer("timeout", detail=f"no answer within {self._timeout_s:g} s"))
        self._finish(begun)
        if begun.answer.result().outcome == "graded" and is_custom(begun.job.question["kind"]):
            self._workers.give_back(begun.worker)
        else:
            self._workers.end(begun.worker)

    async def _begin(self, jobs: Sequence[_Job]) -> list[_Begun]:
        worker = await self._workers.take()
        answers = worker.ask([job.question for job in jobs])
        now = asyncio.get_running_loop().time()
        return [_Begun(job, worker, answer, now) for job, answer in zip(jobs, answers, strict=True)]

    def _finish(self, begun: _Begun) -> bool:
        """Pass an answer on to who waits for it; False if there is none."""
        if not begun.answer.done() or begun.answer.cancelled():
            return False
        if not begun.job.answer.done():
            begun.job.answer.set_result(begun.answer.result())
        return True

    def _count(self, scores: list[Score]) -> list[Score]:
        """Count the outcomes; a reward that mostly raises has a fault, and a run must not train on its zeros."""
        self.outcomes.update(score.outcome for score in scores)
        failed, total = self.outcomes["error"], self.outcomes.total()
        if scores[0].outcome == "error":
            _LOG.warning("reward function failed (%d of %d): %s", failed, total, scores[0].detail)
            if total >= _MIN_SCORED and failed > _MAX_ERROR_SHARE * total:
                raise RewardError(f"the reward function raised for {failed} of {total} responses:\n{scores[0].detail}")
        return scores

    def _on_lost(self, lost: asyncio.Future[str]) -> None:
        if not lost.cancelled():
            self._break(lost.result())

    def _on_lane_ended(self, lane: asyncio.Task[None]) -> None:
        if not lane.cancelled() and (error := lane.exception()) is not None:
            self._break(f"{type(error).__name__}: {error}")

    def _break(self, reason: str) -> None:
        """Have everybody who waits, and who comes, get an error."""
        self._broken = self._broken or reason
        for answer in list(self._unanswered):
            if not answer.done():
                answer.set_exception(RewardError(f"the reward pool cannot grade: {self._broken}"))


def _check_kind(kind: str, made_for: Sequence[str]) -> None:
    if kind in BUILT_IN or (is_custom(kind) and kind in made_for):
        return
    customs = [name for name in made_for if is_custom(name)]
    raise RewardError(
        f"no reward is called {kind!r}; there are {', '.join([*BUILT_IN, *customs])}. "
        "A function of your own is named by custom_rm_path, not by a prompt's rm_type"
    )


def _question(kind: str, requests: Sequence[RewardRequest], group: bool) -> Message:
    first = requests[0]
    return {
        "kind": kind,
        "responses": [request.response for request in requests],
        "label": first.label,
        "metadata": dict(first.metadata) if is_custom(kind) else {},
        "group": group,
    }


def _scores(answer: Answer, count: int) -> list[Score]:
    values = answer.values if answer.outcome == "graded" else (0.0,) * count
    return [Score(value, answer.outcome, answer.detail) for value in values]
