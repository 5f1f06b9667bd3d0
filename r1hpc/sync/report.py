"""How a publication of weights went. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class SyncReport:
    """How one publication went."""

    version: int
    published: tuple[str, ...]
    """Engines that have all weights of `version` and say so."""
    failed: Mapping[str, str]
    """The others and why: they have no version, refuse requests, and have to be started again."""
    retried: tuple[str, ...] = ()
    """Engines that needed a second attempt."""
    buckets: int = 0
    bytes_per_gpu: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    """"total"; of the driver "send" and "check"; of the slowest engine "take", for each payload from the request to its
    answer; of the slowest rank what SyncOutcome names."""

    def retried_by(self, second: SyncReport) -> SyncReport:
        """This attempt and the one after it, at the engines that failed."""
        return replace(
            self,
            published=(*self.published, *second.published),
            failed={name: why for name, why in self.failed.items() if name not in second.published}
            | dict(second.failed),
            retried=(*second.published, *second.failed),
            seconds={
                part: self.seconds.get(part, 0.0) + second.seconds.get(part, 0.0)
                for part in (*self.seconds, *(part for part in second.seconds if part not in self.seconds))
            },
        )
