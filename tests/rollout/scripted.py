"""A rollout without a clock: engines that answer in a scripted order, prompts and rewards that are pure functions.

A response takes as many ticks as it has tokens left to generate; all that end in one tick end together, in the order in
which they were asked for. Its text tells prompt and sample, so that the reward is a function of them alone.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from r1hpc.config.training import RolloutConfig
from r1hpc.rewards.request import RewardRequest, Score
from r1hpc.rollout.filters import NONZERO_STD, GroupFilter
from r1hpc.rollout.oversampling import Limits
from r1hpc.rollout.protocol import Request, join_spans
from r1hpc.rollout.sampler import Sampler
from r1hpc.types import FinishReason, Generation, Prompt, VersionSpan

Key = tuple[int, int]
"""(epoch, index) of a prompt."""
IDLE_TURNS = 30
"""Turns of the event loop after which a sampler with nothing to wait for has done all that it can."""


def key_of(prompt: Prompt) -> Key:
    return prompt.epoch, prompt.index


def draw(seed: int, *what: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return float(numpy.random.default_rng([seed, *what]).random())


@dataclass(frozen=True)
class Script:
    """How long every response is and what it is worth."""

    seed: int = 0
    longest: int = 6
    solvable: float = 0.5
    """Share of prompts whose rewards differ."""

    def length(self, epoch: int, index: int, sample: int) -> int:
        return 1 + int(draw(self.seed, 1, epoch, index, sample) * self.longest)

    def is_good(self, epoch: int, index: int) -> bool:
        return draw(self.seed, 2, epoch, index) < self.solvable

    def reward(self, epoch: int, index: int, sample: int) -> float:
        if self.is_good(epoch, index):
            return float(sample % 2)
        return float(draw(self.seed, 3, epoch, index) < 0.5)


class NumberedPrompts:
    """0, 1, 2, ... in every epoch; the tokens of a prompt are [epoch + 1, index + 1]."""

    def __init__(self, num_prompts: int) -> None:
        self.num_prompts = num_prompts
        self.taken = 0

    def take(self, count: int) -> list[Prompt]:
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        return [self.prompt(*divmod(number, self.num_prompts)) for number in numbers]

    def prompt(self, epoch: int, index: int) -> Prompt:
        tokens = numpy.asarray([epoch + 1, index + 1], dtype=numpy.int32)
        return Prompt(index, epoch, tokens, label=f"{epoch} {index}", metadata={"level": index % 3})

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


def response_tokens(sample: int, length: int) -> NDArray[numpy.int32]:
    """The sample's number, then 1, 2, 3, ..."""
    return numpy.asarray([sample, *range(1, length)], dtype=numpy.int32)


def logprobs_of(tokens: NDArray[numpy.int32]) -> NDArray[numpy.float32]:
    """Exact in float32."""
    return (-(tokens + 1) / 8).astype(numpy.float32)


@dataclass
class _Pending:
    request: Request
    sample: int
    length: int
    began: int
    ends: int
    answer: asyncio.Future[Generation]

    def generation(self, length: int, version: int, finish_reason: FinishReason) -> Generation:
        tokens = response_tokens(self.sample, length)
        begun = self.request.begun
        had = 0 if begun is None else len(begun.tokens)
        spans = [VersionSpan(version, 0, length - had)] if length > had else []
        if begun is not None:
            assert (tokens[:had] == begun.tokens).all()
        return Generation(
            tokens=tokens,
            logprobs=logprobs_of(tokens),
            finish_reason=finish_reason,
            versions=join_spans(() if begun is None else begun.versions, spans),
        )


class ScriptedEngines:
    """Answers requests tick by tick. `version` is what its weights are of."""

    def __init__(self, script: Script, *, never: Callable[[int, int], bool] = lambda epoch, index: False) -> None:
        self.script = script
        self.version = 0
        self.never = never
        """Prompts whose responses do not end before they are aborted."""
        self.spoil: Callable[[Request, int], Exception | Generation | None] = lambda request, group: None
        """What becomes of a request instead: an error, or a generation, at once."""
        self.stop_error: Exception | None = None
        self.ends_on_stop = False
        """Whether what `stop` meets is whole just then, instead of aborted."""
        self.requests: list[Request] = []
        self.now = 0
        self.stops = 0
        self._pending: list[_Pending] = []
        self._running: asyncio.Task[None] | None = None

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def start(self) -> None:
        assert self._running is None, "started twice"
        self._running = asyncio.create_task(self._run())

    async def generate(self, request: Request, group: int) -> Generation:
        self.requests.append(request)
        spoiled = self.spoil(request, group)
        if isinstance(spoiled, Exception):
            raise spoiled
        if spoiled is not None:
            return spoiled
        pending = self._accept(request, group)
        self._pending.append(pending)
        return await pending.answer

    async def stop(self, deadline_s: float) -> None:
        self.stops += 1
        if self._running is not None:
            self._running.cancel()
            self._running = None
        pending, self._pending = self._pending, []
        for each in pending:
            had = 0 if each.request.begun is None else len(each.request.begun.tokens)
            if self.ends_on_stop:
                self._answer(each, each.length, "stop")
            else:
                self._answer(each, min(had + self.now - each.began, each.length), "abort")
        if self.stop_error is not None:
            raise self.stop_error

    def _accept(self, request: Request, group: int) -> _Pending:
        epoch, index = (int(token) - 1 for token in request.prompt)
        match = re.fullmatch(r"[a-z]+\d+-g(\d+)-s(\d+)", request.request_id)
        assert match is not None and int(match[1]) == group, request.request_id
        sample = int(match[2])
        length = min(self.script.length(epoch, index, sample), request.params.max_new_tokens)
        had = 0 if request.begun is None else len(request.begun.tokens)
        assert had < request.params.max_new_tokens, "nothing was left to generate"
        ticks = 10**9 if self.never(epoch, index) else max(length - had, 1)
        future: asyncio.Future[Generation] = asyncio.get_running_loop().create_future()
        return _Pending(request, sample, length, self.now, self.now + ticks, future)

    def _answer(self, pending: _Pending, length: int, finish_reason: FinishReason) -> None:
        if not pending.answer.done():
            pending.answer.set_result(pending.generation(length, self.version, finish_reason))

    async def _run(self) -> None:
        while True:
            for _ in range(IDLE_TURNS):
                await asyncio.sleep(0)
            if not self._pending:
                continue
            self.now = min(pending.ends for pending in self._pending)
            done = [pending for pending in self._pending if pending.ends == self.now]
            self._pending = [pending for pending in self._pending if pending.ends != self.now]
            for pending in done:
                limit = pending.request.params.max_new_tokens
                self._answer(pending, pending.length, "length" if pending.length == limit else "stop")


class ScriptedRewards:
    """Rewards of the script; `hang` names the prompts whose grading never ends."""

    def __init__(self, script: Script, *, hang: Callable[[int, int], bool] = lambda epoch, index: False) -> None:
        self.script = script
        self.hang = hang
        self.groups: list[list[RewardRequest]] = []

    async def score(self, request: RewardRequest) -> Score:
        assert request.label is not None
        epoch, index = map(int, request.label.split())
        if self.hang(epoch, index):
            await asyncio.Event().wait()
        return Score(self.script.reward(epoch, index, int(request.response.split()[0])))

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        self.groups.append(list(requests))
        return [replace(await self.score(request), value=place / 4) for place, request in enumerate(requests)]


def decode(tokens: NDArray[numpy.int32]) -> str:
    return " ".join(map(str, tokens.tolist()))


def rollout_config(**fields: Any) -> RolloutConfig:
    given: dict[str, Any] = {
        "prompt_data": "prompts.jsonl",
        "num_rollout": 10,
        "rm_type": "deepscaler",
        "rollout_batch_size": 4,
        "n_samples_per_prompt": 2,
        "rollout_max_response_len": 32,
        "over_sampling_batch_size": 8,
        "dynamic_sampling_filter_path": NONZERO_STD,
    }
    return RolloutConfig(**given | fields)


@dataclass
class Rig:
    """A sampler and what it runs on."""

    config: RolloutConfig
    prompts: NumberedPrompts
    engines: ScriptedEngines
    rewards: ScriptedRewards
    sampler: Sampler


def make_rig(
    config: RolloutConfig, script: Script, *, num_prompts: int = 1000, limits: Limits | None = None, **more: Any
) -> Rig:
    prompts = NumberedPrompts(num_prompts)
    engines = ScriptedEngines(script)
    rewards = ScriptedRewards(script)
    sampler = Sampler(
        config,
        prompts,
        engines,
        rewards,
        decode,
        GroupFilter.of(config),
        limits=limits or Limits(drain_s=0.2),
        **more,
    )
    return Rig(config, prompts, engines, rewards, sampler)


class Alternating:
    """0, 1, 0, 1, ... for the responses to each prompt."""

    def __init__(self) -> None:
        self.scored: Counter[str | None] = Counter()

    async def score(self, request: RewardRequest) -> Score:
        self.scored[request.label] += 1
        return Score(float(self.scored[request.label] % 2))

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        return [await self.score(request) for request in requests]
