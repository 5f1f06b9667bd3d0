"""Rewards for many responses at a time, none of which can hold up the others.

Two lanes. In the quick lane a worker has a twentieth of a second; nearly every answer needs a hundredth of that. One
that is not done by then goes to the patient lane and the quick lane takes a new worker, which is a fork away. In the
patient lane it may work on, at low priority, until its time limit; if all places there are taken it is killed and
starts anew when one is free. Custom functions, whose cost is unknown, go to the patient lane at once, so each is called
once a response.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from r1hpc.rewards.frames import frame
from r1hpc.rewards.kinds import BUILT_IN, is_custom
from r1hpc.rewards.request import Outcome, RewardError, RewardRequest, Score
from r1hpc.rewards.tally import Tally
from r1hpc.rewards.worker_end import Answer, Worker
from r1hpc.rewards.workers import Workers

QUICK_S = 0.02
_MAX_BATCH = 8
_MAX_CRASHES = 3
"""Where memory is short the kernel kills workers whatever they are at, and a right answer must not get 0 for it."""


@dataclass
class _Job:
    question: bytes
    """A frame."""
    custom: bool
    answer: asyncio.Future[Answer]
    num_crashes: int = 0


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
        self._workers: Workers | None = None
        self._tally = Tally()

    async def start(self) -> None:
        """Start the processes; takes seconds, for sympy is imported. Raises RewardError if a kind does not load."""
        for kind in self._kinds:
            _check_kind(kind, self._kinds)
        workers = Workers(self._kinds, self._memory_mb, num_idle=self._num_workers + 1)
        try:
            await workers.start()
        except BaseException:  # cancelled too
            await workers.close()
            raise
        self._workers = workers
        self._broken = None
        workers.lost.add_done_callback(self._on_lost)
        for lane in (self._run_quick, self._run_patient):
            self._lanes += [asyncio.create_task(lane(workers)) for _ in range(self._num_workers)]
        for task in self._lanes:
            task.add_done_callback(self._on_lane_ended)

    async def close(self) -> None:
        """End every process. Calls of score() that still wait raise RewardError."""
        self._break("it was closed")
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        if self._workers is not None:
            await self._workers.close()

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Of all responses scored."""
        return self._tally.outcomes

    @property
    def num_restarts(self) -> int:
        """How often the process that workers are forked from died and was started again."""
        return 0 if self._workers is None else self._workers.num_restarts

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
        answer = await self._answer(_question(kind, [request], group=False), is_custom(kind))
        [score] = scores = _scores(answer, 1)
        self._tally.add(scores, is_custom(kind))
        return score

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        """The rewards of all responses to one prompt, in order; a custom function is called once with all of them.

        Raises RewardError as score() does.
        """
        kinds = {self._kind_of(request) for request in requests}
        if len(kinds) > 1:
            raise RewardError(f"a group is of one prompt and has one reward; this one has {', '.join(sorted(kinds))}")
        if not any(map(is_custom, kinds)):
            return list(await asyncio.gather(*map(self.score, requests)))
        answer = await self._answer(_question(kinds.pop(), requests, group=True), custom=True)
        scores = _scores(answer, len(requests))
        self._tally.add(scores, custom=True)
        return scores

    def _kind_of(self, request: RewardRequest) -> str:
        kind = request.kind
        if not is_custom(kind):
            kind = request.metadata.get("rm_type") or kind
        _check_kind(kind, self._kinds)
        if request.label is None and not is_custom(kind):
            raise RewardError(f"the reward {kind} compares with a label and a prompt has none; see label_key")
        return kind

    async def _answer(self, question: bytes, custom: bool) -> Answer:
        async with self._room:
            if self._broken is not None:
                raise RewardError(f"the reward pool cannot grade: {self._broken}")
            job = _Job(question, custom, asyncio.get_running_loop().create_future())
            self._unanswered.add(job.answer)
            job.answer.add_done_callback(self._unanswered.discard)
            if custom:
                self._slow.put_nowait(job)
            else:
                self._quick.put_nowait(job)
            return await job.answer

    async def _run_quick(self, workers: Workers) -> None:
        jobs: list[_Job] = []
        while True:
            jobs = jobs or await self._next_jobs()
            jobs = await self._try(jobs, workers)

    async def _next_jobs(self) -> list[_Job]:
        """What waits, up to a batch, but no more than this lane's share."""
        jobs = [await self._quick.get()]
        share = min(_MAX_BATCH, -(-self._quick.qsize() // self._num_workers))
        jobs += [self._quick.get_nowait() for _ in range(share - 1)]
        return [job for job in jobs if not job.answer.done()]  # their callers were cancelled

    async def _try(self, jobs: Sequence[_Job], workers: Workers) -> list[_Job]:
        """Grade a batch; returns those that were not reached because one before them is slow or ended the worker."""
        if not jobs:
            return []
        batch = await _begin(jobs, workers)
        for begun in batch:
            if not begun.answer.done():
                await asyncio.wait((begun.answer,), timeout=QUICK_S)
            if not begun.answer.done():
                break
        worker = batch[0].worker
        unanswered = [begun for begun in batch if not self._finish(begun)]
        if unanswered and worker.alive:
            self._postpone(unanswered.pop(0), workers)
        else:
            workers.give_back(worker)
        return [begun.job for begun in unanswered]

    def _postpone(self, begun: _Begun, workers: Workers) -> None:
        """Move it to the patient lane: with its worker if there is a place, else to start anew later."""
        if self._slow.qsize() < self._num_patient_idle:
            workers.set_aside(begun.worker)
            self._slow.put_nowait(begun)
        else:
            workers.end(begun.worker)
            self._slow.put_nowait(begun.job)

    async def _run_patient(self, workers: Workers) -> None:
        while True:
            self._num_patient_idle += 1
            waited = await self._slow.get()
            self._num_patient_idle -= 1
            if isinstance(waited, _Begun):
                await self._see_through(waited, workers)
                waited = waited.job
            # Again while there is no answer: the worker was killed, perhaps not for this job's fault.
            while not waited.answer.done():
                [begun] = await _begin([waited], workers)
                await self._see_through(begun, workers)

    async def _see_through(self, begun: _Begun, workers: Workers) -> None:
        """Give an answer the time up to its limit; its worker is not used again if it was set aside or is stuck."""
        left_s = begun.begun + self._timeout_s - asyncio.get_running_loop().time()
        await asyncio.wait((begun.answer,), timeout=max(left_s, 0.0))
        if not begun.answer.done():
            begun.answer.set_result(Answer("timeout", detail=f"no answer within {self._timeout_s:g} s"))
        if self._finish(begun) and begun.job.custom and begun.answer.result().outcome == "graded":
            workers.give_back(begun.worker)
        else:
            workers.end(begun.worker)

    def _finish(self, begun: _Begun) -> bool:
        """Pass an answer on to who waits for it; False if there is none, or the job is to be tried again."""
        if not begun.answer.done() or begun.answer.cancelled():
            return False
        job, answer = begun.job, begun.answer.result()
        if answer.outcome == "crashed" and not job.custom:
            job.num_crashes += 1
            if job.num_crashes < _MAX_CRASHES:
                return False
        if not job.answer.done():
            job.answer.set_result(answer)
        return True

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
    if kind in BUILT_IN or (kind in made_for and is_custom(kind)):
        return
    customs = [name for name in made_for if is_custom(name)]
    raise RewardError(
        f"no reward is called {kind!r}; there are {', '.join([*BUILT_IN, *customs])}. "
        "A function of your own is named by custom_rm_path, not by a prompt's rm_type"
    )


def _question(kind: str, requests: Sequence[RewardRequest], group: bool) -> bytes:
    first = requests[0]
    question = {
        "kind": kind,
        "responses": [request.response for request in requests],
        "label": first.label,
        "metadata": dict(first.metadata) if is_custom(kind) else {},
        "group": group,
    }
    try:
        return frame(question)
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardError(f"metadata of a prompt cannot be passed to {kind} as JSON: {error}") from error


async def _begin(jobs: Sequence[_Job], workers: Workers) -> list[_Begun]:
    """Have a worker grade them, one after the other."""
    worker = await workers.take()
    answers = worker.ask([job.question for job in jobs])
    now = asyncio.get_running_loop().time()
    return [_Begun(job, worker, answer, now) for job, answer in zip(jobs, answers, strict=True)]


def _scores(answer: Answer, count: int) -> list[Score]:
    values = answer.values if answer.outcome == "graded" else (0.0,) * count
    return [Score(value, answer.outcome, answer.detail) for value in values]
