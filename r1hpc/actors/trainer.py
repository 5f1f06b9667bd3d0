"""The Ray actor of one rank of the trainer. Loads no torch before its process is set up for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from r1hpc.actors.answers import answering
from r1hpc.actors.memory import MemoryReading
from r1hpc.actors.place import Place, Rendezvous
from r1hpc.actors.process_setup import log_to, share_cores
from r1hpc.config import Config
from r1hpc.sync.endpoint import EngineEndpoint
from r1hpc.sync.report import SyncReport
from r1hpc.types import Sample

if TYPE_CHECKING:
    from r1hpc.actors.rank import TrainerRank
    from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
    from r1hpc.train.checkpoint.trainer_state import TrainerState
    from r1hpc.train.update_stats import UpdateStats

logger = logging.getLogger(__name__)


@ray.remote(max_restarts=0, max_task_retries=0)
class Trainer:
    """One thread, which runs one call at a time: Megatron on a CPU is prepared for the thread that began.

    Ray delivers the calls of one driver in their order, so collective calls meet.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        log_to(place.log, logging.INFO if place.rank == 0 else logging.WARNING)
        self._threads = share_cores(place.machine_slots)
        self._rank: TrainerRank | None = None

    def where(self) -> tuple[int, list[str]]:
        """Pid, and the GPUs that Ray gave it."""
        return os.getpid(), list(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    @answering
    def start(self, config: Config, rendezvous: Rendezvous) -> None:
        """Load torch, meet the other ranks, build the model."""
        from r1hpc.actors.rank import TrainerRank

        self._rank = TrainerRank(config, self._place, rendezvous, self._threads)

    @answering
    def load_reference(self, directory: Path) -> None:
        """See TrainActor, as for what follows."""
        self._started.actor.load_reference(directory)

    @answering
    def load(self, directory: Path) -> None:
        self._started.actor.load(directory)

    @answering
    def resume(self, directory: Path) -> TrainerState:
        return self._started.actor.resume(directory)

    @answering
    def update(self, samples: Sequence[Sample], rollout_id: int) -> UpdateStats | None:
        """Rank 0's numbers, which are those of all."""
        stats = self._started.actor.update(samples, rollout_id)
        return stats if self._place.rank == 0 else None

    @answering
    def sleep(self) -> None:
        self._started.sleep()

    @answering
    def wake(self) -> None:
        self._started.wake()

    @answering
    def begin_save(self, directory: Path, iteration: int) -> None:
        self._started.actor.begin_save(directory, iteration)

    @answering
    def finish_save(self) -> SavedCheckpoint:
        return self._started.actor.finish_save()

    @answering
    def abandon_save(self) -> None:
        self._started.actor.abandon_save()

    @answering
    def sync(
        self, engines: Sequence[EngineEndpoint], version: int, timeout_s: float, full_check: bool
    ) -> SyncReport | None:
        """See TrainerRank, as for what follows."""
        return self._started.sync(engines, version, timeout_s, full_check)

    @answering
    def end_sync(self) -> None:
        self._started.end_sync()

    @answering
    def memory(self) -> MemoryReading:
        return self._started.memory()

    @answering
    def holders(self) -> list[str]:
        return self._started.holders()

    @answering
    def leave(self) -> None:
        """End the process group."""
        self._started.leave()

    @property
    def _started(self) -> TrainerRank:
        assert self._rank is not None, "start comes first"
        return self._rank
