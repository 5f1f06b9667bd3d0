"""Where the prompts of a rollout come from, and what becomes of groups that were not trained on.

`none` forgets them. `prompts` throws their responses away and queues their prompts, which are served before the data,
oldest first. `tokens` keeps what was generated and goes on from there. Responses of one prompt are thrown away at most
`max_drops` times; then it is given up, and counted: a prompt that is too long for every rollout does not stay for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from r1hpc.rollout.group import Queued
from r1hpc.types import Prompt

Recycle = Literal["none", "prompts", "tokens"]


class Prompts(Protocol):
    """What the sampler needs of a PromptSource."""

    def take(self, count: int) -> list[Prompt]:
        """The next prompts, across the end of an epoch too."""

    def state(self) -> dict[str, Any]:
        """The cursor."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a cursor."""


class PromptQueue:
    """Serves recycled prompts in order, then those of the data."""

    def __init__(self, prompts: Prompts, recycle: Recycle, *, max_drops: int) -> None:
        self._prompts = prompts
        self._recycle = recycle
        self._max_drops = max_drops
        self._waiting: deque[Queued] = deque()

    @property
    def waiting(self) -> tuple[Queued, ...]:
        """The recycled prompts, next first."""
        return tuple(self._waiting)

    def restore(self, waiting: Iterable[Queued], cursor: Mapping[str, Any]) -> None:
        """Go on from what `waiting` and `cursor` were once."""
        self._prompts.load_state(cursor)
        self._waiting = deque(waiting)

    def cursor(self) -> dict[str, Any]:
        """Of the data."""
        return self._prompts.state()

    def take(self, count: int) -> list[Queued]:
        """The next `count`."""
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        return taken + [Queued(prompt) for prompt in self._prompts.take(count - len(taken))]

    def put_first(self, groups: Sequence[Queued]) -> None:
        """Serve these next, in this order: as if they had not been taken."""
        self._waiting.extendleft(reversed(groups))

    def give_back(self, groups: Sequence[Queued]) -> list[Queued]:
        """Queue groups that were not trained on, in this order; returns those that are not: dropped, or given up.

        A group with `begun` keeps it only where tokens are recycled.
        """
        out = []
        for group in groups:
            queued = self._next_turn(group)
            if queued is None:
                out.append(group)
            else:
                self._waiting.append(queued)
        return out

    def _next_turn(self, group: Queued) -> Queued | None:
        if self._recycle == "none":
            return None
        if self._recycle == "tokens" and group.begun:
            return group
        if group.times_dropped >= self._max_drops:
            return None
        return replace(group, times_dropped=group.times_dropped + 1, begun=())
