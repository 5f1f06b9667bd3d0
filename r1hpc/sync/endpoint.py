"""The two sides that a publication brings together, as the driver sees them: engines over HTTP, trainers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.versions import Capabilities
from r1hpc.sync.outline import SyncOutcome, SyncOutline, SyncTarget


@dataclass(frozen=True)
class EngineEndpoint:
    """Where one engine is spoken to, and who stands beside its GPUs."""

    name: str
    control: EngineControl
    known: Capabilities
    ranks: tuple[int, ...]
    """The trainer rank beside each of its tensor-parallel ranks, in their order."""
    ep_size: int = 1

    @property
    def target(self) -> SyncTarget:
        """What the trainers are told of it."""
        return SyncTarget(self.name, self.ranks, self.ep_size)


class Couriers(Protocol):
    """All trainer ranks as one. Every method is collective among them."""

    async def begin_sync(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        """Plan a sync to these engines."""

    async def offer(self, bucket: int) -> list[str | None]:
        """The payload of this bucket by rank; None where the rank is no courier.

        May be called before the last call has returned: buckets are prepared in the order of the calls.
        """

    async def end_sync(self) -> list[SyncOutcome]:
        """Give the memory of the payloads back; by rank how its part ended. To be called after a failure too."""
