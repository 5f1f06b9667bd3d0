"""One group in flight: its responses are generated and graded side by side, each graded as soon as it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from r1hpc.rollout.dispatch import DispatchError, NoEngineError
from r1hpc.rollout.grading import Grader
from r1hpc.rollout.group import Draft, Queued, SamplerError, make_samples
from r1hpc.rollout.protocol import EngineRefusal, Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.vocabulary import check_vocabulary
from r1hpc.types import Generation, Prompt, Sample


class Engines(Protocol):
    """What the sampler needs of a Dispatcher."""

    def start(self) -> None:
        """Take requests (again)."""

    async def generate(self, request: Request, group: int) -> Generation:
        """The whole response, what `request.begun` has included."""

    async def stop(self, deadline_s: float) -> None:
        """Make every pending generate() return what it has; raises where an engine still runs requests then."""


@dataclass
class Floor:
    """What all attempts of one rollout share."""

    engines: Engines
    grader: Grader
    params: SamplingParams
    rollout_id: int
    weight_version: int
    """Version that all new tokens must be of."""
    vocab_size: int | None = None
    """Token ids that the model knows; None checks no prompt."""
    name: str = "r"
    """Begins every request id: requests of a rollout and of an evaluation never have one in common."""
    is_stopping: bool = False
    """From now on nothing is graded, and an aborted response is no failure."""
    dropped_tokens: int = 0
    """Of begun responses that were all of older weights, and so were thrown away before anything went on."""
    generating: int = 0
    is_quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no generate() is pending."""

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Counts a pending generate()."""
        self.generating += 1
        self.is_quiet.clear()
        try:
            yield
        finally:
            self.generating -= 1
            if not self.generating:
                self.is_quiet.set()


class Attempt:
    """The responses to one prompt, on their way."""

    def __init__(self, index: int, queued: Queued, num_samples: int) -> None:
        self.index = index
        self.queued = queued
        self.drafts: list[Draft | None] = list(queued.begun) or [None] * num_samples
        """As far as they got; None where not even a token is there."""
        self.began_with = self.num_tokens
        self.failure: str | None = None
        """Why the group cannot be trained on, if so: an engine gave up on a response of it."""
        self.is_refused = False
        """Whether trying again cannot help: an engine says that the request is wrong."""
        self.samples: tuple[Sample, ...] = ()
        """Of a finished group."""
        self.started: dict[int, float] = {}
        """Sample -> loop time, of those that are being generated."""

    @property
    def prompt(self) -> Prompt:
        """What is answered."""
        return self.queued.prompt

    @property
    def num_tokens(self) -> int:
        """Of all responses so far, those included that the group began with."""
        return sum(len(response.generation.tokens) for response in self.drafts if response is not None)

    @property
    def new_tokens(self) -> int:
        """Generated in this attempt."""
        return self.num_tokens - self.began_with

    def whole(self) -> list[Draft] | None:
        """The responses, if all of them are there, graded."""
        found = [response for response in self.drafts if response is not None and response.reward is not None]
        return found if len(found) == len(self.drafts) else None

    def finish(self, rollout_id: int, current: int | None) -> tuple[Sample, ...]:
        """Make the samples of a group that is whole; see `make_samples`."""
        whole = self.whole()
        assert whole is not None, f"group {self.index} ended without all of its rewards"
        self.samples = make_samples(self.index, self.prompt, whole, rollout_id=rollout_id, current=current)
        # A sample holds prompt and response in one array: the responses need none of their own any more.
        self.drafts = [
            replace(draft, generation=replace(draft.generation, tokens=sample.tokens[-sample.response_len :]))
            for draft, sample in zip(whole, self.samples, strict=True)
        ]
        return self.samples

    def forget(self) -> None:
        """Give the memory of the responses back."""
        self.drafts = []
        self.samples = ()

    async def run(self, floor: Floor) -> None:
        """Generate and grade what is missing; returns when the slowest is done, or early when the rollout stops.

        Raises what the engines or the rewards raised first, and SamplerError for a prompt that no engine may get.
        """
        if floor.vocab_size is not None:
            check_vocabulary(self.prompt, floor.vocab_size)
        try:
            async with asyncio.TaskGroup() as tasks:
                for index in range(len(self.drafts)):
                    tasks.create_task(self._respond(index, floor))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        if floor.grader.by_group and not floor.is_stopping and not self.failure and self.whole() is None:
            await self._grade_together(floor)

    async def _respond(self, index: int, floor: Floor) -> None:
        await self._generate(index, floor)
        response = self.drafts[index]
        if response is None or response.generation.finish_reason == "abort" or response.reward is not None:
            return
        if floor.is_stopping or floor.grader.by_group:
            return
        reward = await floor.grader.grade(self.prompt, response.generation)
        self.drafts[index] = replace(response, reward=reward)

    async def _generate(self, index: int, floor: Floor) -> None:
        """Have response `index` generated to its end, if it is not; keep what there is if the rollout stops."""
        begun = self.drafts[index]
        if begun is not None and _is_long_enough(begun.generation, floor.params):
            # Truncated already: an engine would be asked for no token.
            begun = self.drafts[index] = replace(begun, generation=replace(begun.generation, finish_reason="length"))
        if floor.is_stopping or (begun is not None and begun.generation.finish_reason != "abort"):
            return
        request = Request(
            prompt=self.prompt.tokens,
            params=floor.params,
            request_id=f"{floor.name}{floor.rollout_id}-g{self.index}-s{index}",
            begun=None if begun is None else begun.generation,
        )
        self.started[index] = asyncio.get_running_loop().time()
        try:
            with floor.generation():
                generation = await floor.engines.generate(request, self.index)
        except NoEngineError:
            raise
        except (EngineRefusal, DispatchError) as error:
            self.failure = str(error)
            self.is_refused = isinstance(error, EngineRefusal)
            return
        finally:
            del self.started[index]
        self._check(index, generation, begun, floor)
        if len(generation.tokens):
            self.drafts[index] = Draft(generation)

    def _check(self, index: int, generation: Generation, begun: Draft | None, floor: Floor) -> None:
        num_begun = 0 if begun is None else len(begun.generation.tokens)
        if generation.finish_reason == "abort":
            if not floor.is_stopping:
                self.failure = f"an engine aborted sample {index} after {len(generation.tokens)} tokens, unasked"
        elif len(generation.tokens) == 0:
            self.failure = f"an engine returned no token for sample {index}"
        for span in generation.versions:
            if span.version != floor.weight_version and span.end > num_begun:
                raise SamplerError(
                    f"group {self.index} sample {index}: tokens {span.begin} to {span.end - 1} are by weights of"
                    f" version {span.version}, but rollout {floor.rollout_id} is of version {floor.weight_version}:"
                    " give the engine the weights before it serves"
                )

    async def _grade_together(self, floor: Floor) -> None:
        whole = [response for response in self.drafts if response is not None]
        rewards = await floor.grader.grade_group(self.prompt, [response.generation for response in whole])
        self.drafts = [replace(response, reward=reward) for response, reward in zip(whole, rewards, strict=True)]


def _is_long_enough(generation: Generation, params: SamplingParams) -> bool:
    return generation.finish_reason == "abort" and len(generation.tokens) >= params.max_new_tokens


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that came first; the others are cancellations that it led to, or the same again."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
