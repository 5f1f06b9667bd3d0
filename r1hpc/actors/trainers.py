"""All ranks of the trainer as one, for the driver."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from r1hpc.actors.collective_call import GRACE_S, TrainerLost, TrainersError, answers
from r1hpc.actors.memory import MemoryReading
from r1hpc.actors.patience import Patience
from r1hpc.actors.place import Place, Rendezvous
from r1hpc.actors.process_setup import trainer_environment
from r1hpc.actors.trainer import Trainer
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.ray import Slot
from r1hpc.config import Config
from r1hpc.rollout.engine_environment import group_interface
from r1hpc.sync.attempt import longest_take_s
from r1hpc.sync.endpoint import EngineEndpoint
from r1hpc.sync.publish import ATTEMPTS
from r1hpc.sync.report import SyncReport
from r1hpc.types import Sample

if TYPE_CHECKING:
    from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
    from r1hpc.train.checkpoint.trainer_state import TrainerState
    from r1hpc.train.update_stats import UpdateStats

__all__ = ["TrainerGroup", "TrainerLost", "TrainersError", "trainer_places"]

logger = logging.getLogger(__name__)

GPU_SHARE = 0.4
"""Of a slot's GPU in Ray's books; the engine beside has its own share. Both use all of it, in turns."""
_LEAVE_S = 10.0
_SYNC_SLACK_S = 60.0
"""For a sync beyond its own deadlines: a first one plans for seconds, and past its deadline it is ended in order."""
_LOOK_S = 5.0
"""Between two looks whether idle trainers live."""


Member = tuple[Place, ActorHandle]
"""One rank: where it runs, and its actor."""


class TrainerGroup:
    """Every method asks all ranks and raises TrainersError, with the rank that it began with.

    An error that all ranks have answered leaves them as TrainActor says (`usable`). Once one has died, or has not
    answered in time, the others may be stuck in a collective: then every later call raises the same again.
    """

    def __init__(self, members: Sequence[Member], patience: Patience) -> None:
        self.members = tuple(members)
        """By rank."""
        self._patience = patience
        self._broken: TrainersError | None = None
        self._calls = 0
        """Under way."""

    @classmethod
    async def start(
        cls,
        config: Config,
        launch: Launch,
        group: PlacementGroup,
        slots: Sequence[Slot],
        logs: Path,
        deadline_s: float,
    ) -> TrainerGroup:
        """Start a rank on every slot, let all meet and build the model; its weights come with `load` or `resume`.

        Raises TrainersError after ending what was started.
        """
        began = time.monotonic()
        address = launch.head.address
        environment = trainer_environment(config.hosts.device, group_interface(address, config.hosts.fabric_interface))
        members = [
            (place, _actor(place, group, slot.bundle, environment))
            for place, slot in zip(trainer_places(slots, logs), slots, strict=True)
        ]
        patience = Patience()
        self = cls(members, patience)
        try:
            where = await self._ask("the trainers' processes", "where", deadline_s)
            _check_gpus(slots, where)
            left = max(0.0, began + deadline_s - time.monotonic())
            port = launch.ports(launch.head).rendezvous
            meeting = Rendezvous(address, port, len(slots), max(left, 1.0), patience.collective_s)
            await self._ask("the trainers' model", "start", left, config, meeting)
        except BaseException:
            self._kill()
            raise
        logger.info("%d trainers are up, %.0f s", len(members), time.monotonic() - began)
        return self

    async def pids(self) -> list[int]:
        """Of the ranks' processes."""
        return [pid for pid, _ in await self._ask("pids", "where", self._patience.look_s)]

    async def load_reference(self, directory: Path) -> None:
        """Keep a checkpoint's weights as the reference."""
        await self._ask("load_reference", "load_reference", self._patience.load_s, directory)

    async def load(self, directory: Path) -> None:
        """Train from the weights of a checkpoint."""
        await self._ask("load", "load", self._patience.load_s, directory)

    async def resume(self, directory: Path) -> TrainerState:
        """Go on where a checkpoint stands."""
        state: TrainerState = await self._first("resume", "resume", self._patience.load_s, directory)
        return state

    async def update(self, samples: Sequence[Sample], rollout_id: int) -> UpdateStats:
        """Train on a rollout; wakes the trainers if they sleep."""
        # Each host fetches them once, and its ranks read the same copy.
        sent = ray.put(list(samples))
        stats: UpdateStats = await self._first(
            f"update {rollout_id}", "update", self._patience.update_s, sent, rollout_id
        )
        return stats

    async def sleep(self) -> None:
        """Give the devices' memory to the engines."""
        await self._ask("sleep", "sleep", self._patience.sleep_s)

    async def wake(self) -> None:
        """Take it back."""
        await self._ask("wake", "wake", self._patience.sleep_s)

    async def begin_save(self, directory: Path, iteration: int) -> None:
        """Begin to write a checkpoint out of host memory."""
        await self._ask("begin_save", "begin_save", self._patience.begin_save_s, directory, iteration)

    async def finish_save(self) -> SavedCheckpoint:
        """Wait until it is written."""
        saved: SavedCheckpoint = await self._first("finish_save", "finish_save", self._patience.finish_save_s)
        return saved

    async def abandon_save(self) -> None:
        """Stop writing it."""
        await self._ask("abandon_save", "abandon_save", self._patience.finish_save_s)

    async def sync(
        self, engines: Sequence[EngineEndpoint], version: int, *, timeout_s: float, full_check: bool = False
    ) -> SyncReport:
        """Give these engines the weights; see `publish`. Where this is cancelled the ranks go on with it."""
        what, deadline_s = f"weights {version}", ATTEMPTS * timeout_s + _SYNC_SLACK_S
        # Where all fail the first rank answers last: engines read the payload before, and it waits for them.
        grace_s = longest_take_s(timeout_s) + GRACE_S
        arguments = list(engines), version, timeout_s, full_check
        try:
            report: SyncReport = (await self._ask(what, "sync", deadline_s, *arguments, grace_s=grace_s))[0]
        except TrainersError as error:
            if error.usable:
                await self._ask("end_sync", "end_sync", timeout_s)
            raise
        return report

    async def memory(self) -> list[MemoryReading]:
        """By rank, what is free where it and its engine run."""
        return await self._ask("memory", "memory", self._patience.look_s)

    async def holders(self) -> list[list[str]]:
        """By rank, who holds that memory."""
        return await self._ask("holders", "holders", self._patience.look_s)

    async def until_lost(self) -> NoReturn:
        """Look after the trainers while nothing else is asked of them. Raises TrainerLost once one is gone."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if not self._calls:
                # It may have to wait behind whatever is asked meanwhile, which has a deadline of its own.
                await self._ask("a sign of life", "where", self._patience.update_s)

    async def close(self) -> None:
        """End every rank, in order if they are well. Raises nothing."""
        try:
            if not self._calls:
                await self._ask("leave", "leave", _LEAVE_S)
        except TrainersError as error:
            logger.warning("%s", error)
        finally:
            self._kill()

    def _kill(self) -> None:
        for _, actor in self.members:
            ray.kill(actor)

    async def _first(self, what: str, method: str, deadline_s: float, *arguments: Any) -> Any:
        return (await self._ask(what, method, deadline_s, *arguments))[0]

    async def _ask(
        self, what: str, method: str, deadline_s: float, *arguments: Any, grace_s: float = GRACE_S
    ) -> list[Any]:
        """Call `method` of every rank. All are called before anything is waited for: so every rank has one order."""
        if self._broken is not None:
            raise self._broken
        calls = [(place, getattr(actor, method).remote(*arguments)) for place, actor in self.members]
        self._calls += 1
        try:
            return await answers(what, calls, deadline_s, grace_s)
        except TrainersError as error:
            if not error.usable:
                self._broken = error
            raise
        finally:
            self._calls -= 1


def trainer_places(slots: Sequence[Slot], logs: Path) -> list[Place]:
    """Of every rank. A slot's GPU is counted among those of its host, whatever numbers the driver gives them."""
    gpus: dict[str, list[int]] = {}
    for slot in slots:
        gpus.setdefault(slot.host, []).append(slot.gpu)
    on_machine = Counter(slot.machine for slot in slots)
    return [
        Place(
            rank=rank,
            host=slot.host,
            gpu=sorted(gpus[slot.host]).index(slot.gpu),
            machine_slots=on_machine[slot.machine],
            log=logs / f"trainer{rank:03d}-{slot.host}.log",
        )
        for rank, slot in enumerate(slots)
    ]


def _actor(place: Place, group: PlacementGroup, bundle: int, environment: dict[str, str]) -> ActorHandle:
    return Trainer.options(  # type: ignore[attr-defined]
        num_gpus=GPU_SHARE,
        num_cpus=0,
        name=f"trainer{place.rank}",
        runtime_env={"env_vars": environment},
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle),
    ).remote(place)


def _check_gpus(slots: Sequence[Slot], where: Sequence[tuple[int, list[str]]]) -> None:
    for rank, (slot, (_, gpus)) in enumerate(zip(slots, where, strict=True)):
        assert gpus == [str(slot.gpu)], f"rank {rank} is to have GPU {slot.gpu} of {slot.host}, and Ray gave it {gpus}"
