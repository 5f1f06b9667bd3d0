"""python -m tests.gpu.cycle RANK WORLD SCRATCH: one rank of a colocated cycle without Ray, for test_colocated_cycle.

Every rank is a process with a GPU of its own and holds the trainer's part that an actor would hold. Rank 0 also does
what the driver does: it starts the engine, takes turns with it in the order of r1hpc.colocate, and writes down what it
saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from r1hpc.actors.place import Place, Rendezvous
from r1hpc.actors.process_setup import trainer_environment
from r1hpc.actors.rank import TrainerRank
from r1hpc.cluster.ports import PortBand
from r1hpc.config import Config, load_config
from r1hpc.plan import plan_for
from r1hpc.rollout.placement import EngineHost, place_engines
from r1hpc.rollout.server import EngineServer
from r1hpc.sync.publish import EngineEndpoint, SyncReport, publish
from r1hpc.types import Sample
from tests.gpu.copy_limits import copy_limits
from tests.gpu.peaks import Peaks
from tests.gpu.rollouts import SECRET, gap, generate, logprobs
from tests.gpu.spoiling import Tamper, flip_a_bit, say_wrong_device, skip_forgetting, wrong_device
from tests.sync.driven import DrivenRanks, Extra, drive

CONFIG = Path(__file__).with_name("cycle.yaml")
START_S = 400.0
COLLECTIVE_S = 600.0
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Cycle:
    """What to play."""

    overrides: tuple[str, ...]
    """Of cycle.yaml."""
    port: int
    """First of the ports of engine and trainers."""
    rollouts: int = 3
    faults: bool = True
    """Also spoil payloads, and see what the engine says."""

    def config(self) -> Config:
        return load_config(CONFIG, overrides=list(self.overrides)).config

    def planned_bytes(self) -> dict[str, int]:
        """Of the fullest GPU, by phase."""
        plan = plan_for(load_config(CONFIG, overrides=list(self.overrides)))
        return {phase.name: phase.worst.total_bytes for phase in plan.phases}


@dataclass
class Found:
    """What rank 0 saw; all of it is JSON."""

    seconds: dict[str, float] = field(default_factory=dict)
    free_bytes: dict[str, list[int]] = field(default_factory=dict)
    """Of each GPU, at each moment."""
    process_bytes: dict[str, list[int]] = field(default_factory=dict)
    reserved_bytes: dict[str, list[int]] = field(default_factory=dict)
    """That each trainer's allocator keeps."""
    allocated_bytes: dict[str, list[int]] = field(default_factory=dict)
    """That is in use of it."""
    holders: dict[str, list[str]] = field(default_factory=dict)
    syncs: list[dict[str, Any]] = field(default_factory=list)
    gaps: list[dict[str, float]] = field(default_factory=list)
    """Of each rollout: between the engine's log-probs of what it generated and the trainer's."""
    rewards: list[float] = field(default_factory=list)
    versions: list[list[int]] = field(default_factory=list)
    tampered: dict[str, dict[str, Any]] = field(default_factory=dict)
    control: dict[str, Any] = field(default_factory=dict)
    """Gap of an engine whose attention scales nobody set after a release."""
    limits: dict[str, float] = field(default_factory=dict)
    """GB/s of plain copies in the same process."""
    peak_bytes: dict[str, int] = field(default_factory=dict)
    """Of GPU 0, in each phase of the plan."""
    planned_bytes: dict[str, int] = field(default_factory=dict)
    """What r1hpc.plan says that it will be."""


def main(rank: int, world: int, scratch: Path) -> None:
    """Play the cycle of SCRATCH/work.pkl."""
    cycle: Cycle = pickle.loads((scratch / "work.pkl").read_bytes())
    config = cycle.config()
    found = Found(planned_bytes=cycle.planned_bytes())
    peaks = Peaks(0)
    server = engine_server(config, cycle.port, world, scratch) if rank == 0 else None
    try:
        if server is not None:
            bring_up(server, found)
        place = Place(rank, "here", rank, world, scratch / f"rank{rank}.log")
        meeting = Rendezvous("127.0.0.1", cycle.port + 9, world, START_S, COLLECTIVE_S)
        with Timed(found, "trainer_start"):
            trainer = TrainerRank(config, place, meeting, max(1, (os.cpu_count() or 1) // world))
        # Who waits for orders in NCCL keeps its GPU busy.
        group = torch.distributed.new_group(backend="gloo")
        ranks = DrivenRanks({trainer._publisher._form: trainer._publisher}, works(trainer, config, rank), group)
        drive(ranks, lambda driven: story(driven, cycle, config, server, trainer, found, peaks))
        trainer.leave()
    finally:
        if server is not None:
            asyncio.run(server.stop())
            (scratch / "found.json").write_text(json.dumps(asdict(found), indent=1))


def bring_up(server: EngineServer, found: Found) -> None:
    """Start the engine and have it give its memory back, before there is a trainer."""
    with Timed(found, "engine_start"):
        server.start()
        asyncio.run(server.wait_until_healthy(START_S))
    found.free_bytes["engine up"] = [torch.cuda.mem_get_info(0)[0]]
    asyncio.run(release(server))
    found.free_bytes["engine released, no trainer"] = [torch.cuda.mem_get_info(0)[0]]


def works(trainer: TrainerRank, config: Config, gpu: int) -> Mapping[str, Extra]:
    """What all ranks do together besides the sync, by name."""
    actor = trainer.actor
    return {
        "load": lambda: actor.load(Path(config.ckpt.ref_load or "")),
        "wake": trainer.wake,
        "sleep": trainer.sleep,
        "memory": trainer.memory,
        "holders": trainer.holders,
        "reserved": lambda: torch.cuda.memory_reserved(gpu),
        "allocated": lambda: torch.cuda.memory_allocated(gpu),
        "update": actor.update,
        "logprobs": lambda samples: logprobs(actor, samples),
        "limits": lambda: copy_limits(torch.device("cuda", gpu)),
    }


async def story(
    ranks: DrivenRanks,
    cycle: Cycle,
    config: Config,
    server: EngineServer | None,
    trainer: TrainerRank,
    found: Found,
    peaks: Peaks,
) -> None:
    """From the load of the trainer to the last rollout."""
    assert server is not None
    world = config.hosts.gpus_per_node
    engine = EngineEndpoint(
        "engine0", server.control, server.capabilities, tuple(range(world)), ep_size=config.sglang.ep_size
    )
    turns = Turns(ranks, engine, found, peaks)
    with Timed(found, "trainer_load"):
        await ranks.ask("load")
    await turns.read("trainer awake, engine released")
    for rollout in range(cycle.rollouts):
        await turns.to_engine(rollout)
        with peaks.phase("rollout"):
            samples = await generated(server, config, rollout, found)
        await turns.to_trainer(rollout)
        found.gaps.append(gap(samples, (await ranks.ask("logprobs", samples))[0]))
        with Timed(found, f"update {rollout}"), peaks.phase("train"):
            await ranks.ask("update", samples, rollout)
        if rollout == 0:
            await turns.read("after an update, engine released")
    found.peak_bytes = peaks.bytes_of
    if cycle.faults:
        await spoil(turns, trainer, server, config, found)
    else:
        await turns.to_engine(cycle.rollouts, full_check=True)
        await turns.to_trainer(cycle.rollouts)
    found.limits = (await ranks.ask("limits"))[0]


async def spoil(turns: Turns, trainer: TrainerRank, server: EngineServer, config: Config, found: Found) -> None:
    """What is wrong with a payload is said and leaves the engine without a version; the next sync heals it."""
    ranks = turns.ranks
    await ranks.ask("sleep")
    await turns.engine.control.resume_memory(["weights"])
    spoilers: dict[str, Tamper] = {
        "flip_a_bit": lambda bucket, payloads: flip_a_bit(trainer, bucket, payloads),
        "wrong_device": wrong_device,
        "say_wrong_device": say_wrong_device,
    }
    for name, spoiler in spoilers.items():
        ranks.tamper = spoiler
        report = await publish(ranks, [turns.engine], 90, timeout_s=TIMEOUT_S)
        found.tampered[name] = {
            "published": report.published,
            "failed": dict(report.failed),
            "version": await server.control.weight_version(),
        }
    # As after any turn of the trainer: what lies in the engine's memory is not what it was.
    await turns.engine.control.release_memory(["weights"])
    await turns.engine.control.resume_memory(["weights"])
    ranks.tamper = skip_forgetting
    report = await publish(ranks, [turns.engine], 91, timeout_s=TIMEOUT_S)
    found.control = {"published": report.published}
    ranks.tamper = None
    await turns.engine.control.resume_memory(["kv_cache", "cuda_graph"])
    try:
        samples = await generated(server, config, 91, Found())
        await turns.to_trainer(91)
        found.control |= gap(samples, (await ranks.ask("logprobs", samples))[0])
    except Exception as error:  # whatever such an engine does is of interest
        found.control["error"] = f"{type(error).__name__}: {error}"[:500]
        await turns.to_trainer(91)
    await turns.to_engine(92, full_check=True)
    samples = await generated(server, config, 92, found)
    await turns.to_trainer(92)
    found.gaps.append(gap(samples, (await ranks.ask("logprobs", samples))[0]))


class Turns:
    """Who has the GPUs, in the order of r1hpc.colocate; reads the memory at each step of the first turns."""

    def __init__(self, ranks: DrivenRanks, engine: EngineEndpoint, found: Found, peaks: Peaks) -> None:
        self.ranks = ranks
        self._peaks = peaks
        self.engine = engine
        self._found = found

    async def to_engine(self, version: int, full_check: bool = False) -> SyncReport:
        """Trainers sleep; the engine takes memory for weights, the weights, then cache and graphs."""
        with Timed(self._found, f"sleep {version}"):
            await self.ranks.ask("sleep")
        await self.read(f"{version}: both asleep")
        with Timed(self._found, f"resume weights {version}"):
            await self.engine.control.resume_memory(["weights"])
        with self._peaks.phase("sync"):
            report = await publish(self.ranks, [self.engine], version, timeout_s=TIMEOUT_S, full_check=full_check)
        self._found.syncs.append(asdict(report))
        assert not report.failed, report.failed
        await self.read(f"{version}: engine has weights")
        with Timed(self._found, f"resume rest {version}"):
            await self.engine.control.resume_memory(["kv_cache", "cuda_graph"])
        await self.read(f"{version}: engine resumed")
        return report

    async def to_trainer(self, version: int) -> None:
        """The engine gives all memory back; trainers take theirs."""
        control = self.engine.control
        with Timed(self._found, f"release {version}"):
            await control.flush_cache()
            await control.release_memory()
        await self.read(f"{version}: both asleep again")
        with Timed(self._found, f"wake {version}"):
            await self.ranks.ask("wake")

    async def read(self, moment: str) -> None:
        """The memory of every GPU."""
        readings = await self.ranks.ask("memory")
        self._found.free_bytes[moment] = [reading.free_bytes for reading in readings]
        self._found.process_bytes[moment] = [reading.process_bytes for reading in readings]
        self._found.reserved_bytes[moment] = await self.ranks.ask("reserved")
        self._found.allocated_bytes[moment] = await self.ranks.ask("allocated")
        self._found.holders[moment] = (await self.ranks.ask("holders"))[0]


class Timed:
    """Seconds of the body, as `name`."""

    def __init__(self, found: Found, name: str) -> None:
        self._found, self._name = found, name

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._found.seconds[self._name] = time.monotonic() - self._began


def engine_server(config: Config, port: int, world: int, scratch: Path) -> EngineServer:
    """One engine on all GPUs, without what the trainer's environment has for itself."""
    host = EngineHost("127.0.0.1", PortBand(port, 400))
    ((process,),) = place_engines([host], world, world)
    own = trainer_environment("cuda", "lo")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    return EngineServer(config, process, scratch / "logs", environment=environment, secret=SECRET)


async def generated(server: EngineServer, config: Config, version: int, found: Found) -> list[Sample]:
    """A rollout, and what `found` keeps of it."""
    with Timed(found, f"generate {version}"):
        rollout = await generate(server.process.url, config, version)
    found.versions.append(rollout.versions)
    found.rewards.append(rollout.reward)
    return rollout.samples


async def release(server: EngineServer) -> None:
    """As after the bring-up."""
    await server.control.flush_cache()
    await server.control.release_memory()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
