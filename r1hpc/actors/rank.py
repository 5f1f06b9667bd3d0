"""One rank of the trainer in its process: the process group, the actor, and its part of every sync."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from r1hpc.actors.memory import MemoryReading, holders, read_memory
from r1hpc.actors.place import Place, Rendezvous
from r1hpc.actors.rendezvous import join
from r1hpc.config import Config
from r1hpc.plan.model_shape import model_shape
from r1hpc.sync.crew import Crew
from r1hpc.sync.endpoint import EngineEndpoint
from r1hpc.sync.form import SyncForm
from r1hpc.sync.publish import publish
from r1hpc.sync.publisher import WeightPublisher
from r1hpc.sync.report import SyncReport
from r1hpc.train.actor import ACTOR, TrainActor
from r1hpc.train.settings import TrainerConfig

logger = logging.getLogger(__name__)


class TrainerRank:
    """Every method but `memory` and `holders` is collective."""

    def __init__(self, config: Config, place: Place, rendezvous: Rendezvous, threads: int) -> None:
        """Meet the other ranks and build this one's part of the model, without weights."""
        torch.set_num_threads(threads)
        cores = len(os.sched_getaffinity(0))
        logger.info("rank %d computes with %d threads, and may use %d cores", place.rank, threads, cores)
        self._place = place
        self._gpu = place.gpu if config.hosts.device == "cuda" else None
        device = torch.device("cpu")
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
            device = torch.device("cuda", self._gpu)
        join(rendezvous, place.rank, device)
        file = _model_file(config)
        values = json.loads(file.read_text(encoding="utf-8"))
        shape = model_shape(values, file)
        self.actor = TrainActor(TrainerConfig.of(config, values, shape))
        weights = self.actor.weights
        self._publisher = WeightPublisher(
            lambda: weights.tensors(ACTOR),
            self.actor.held_model,
            shape,
            SyncForm.of(config.sync, config.hosts.device, shape),
            device=device,
            bucket_bytes=config.sync.bucket_mib * 2**20,
            keep_groups=self.actor.groups is None,
        )

    def sleep(self) -> None:
        """Give the device's memory back, unless that was done."""
        if not self.actor.asleep:
            self.actor.sleep()

    def wake(self) -> None:
        """Take it, unless that was done."""
        if self.actor.memory.asleep:
            self.actor.wake()

    def sync(
        self, engines: Sequence[EngineEndpoint], version: int, timeout_s: float, full_check: bool
    ) -> SyncReport | None:
        """Give these engines the weights; rank 0, which speaks to them, says how it went."""
        crew = Crew(self._publisher)
        if self._place.rank:
            crew.follow()
            return None
        return crew.lead(lambda ranks: publish(ranks, engines, version, timeout_s=timeout_s, full_check=full_check))

    def end_sync(self) -> None:
        """Give the memory of a sync back that failed."""
        self._publisher.end()

    def memory(self) -> MemoryReading:
        """What is free of the memory that this rank and the engine's share."""
        return read_memory(self._place.rank, self._place.host, self._gpu)

    def holders(self) -> list[str]:
        """Who holds that memory."""
        return holders(self._gpu)

    def leave(self) -> None:
        """End the process group: only once every rank has come here may any of them be ended."""
        dist.barrier()
        dist.destroy_process_group()


def _model_file(config: Config) -> Path:
    """config.json of the checkpoint; ckpt.hf_config stands in for it where the checkpoint is not on this host."""
    stored = Path(config.ckpt.hf_checkpoint) / "config.json"
    if config.ckpt.hf_config is None or stored.is_file():
        return stored
    given = Path(config.ckpt.hf_config)
    return given / "config.json" if given.is_dir() else given
