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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch

from r1hpc.actors.place import Place, Rendezvous
from r1hpc.actors.process_setup import trainer_environment
from r1hpc.actors.rank import TrainerRank
from r1hpc.cluster.ports import PortBand
from r1hpc.config import Config, load_config
from r1hpc.plan import plan_for
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.placement import EngineHost, place_engines
from r1hpc.rollout.protocol import Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.server import EngineServer
from r1hpc.sync.hand_over import TURNS
from r1hpc.sync.order import Order
from r1hpc.sync.publish import EngineEndpoint, SyncReport, publish
from r1hpc.train.actor import TrainActor
from r1hpc.train.arena import Arena, TensorSpec
from r1hpc.train.schedule import collate_here
from r1hpc.types import Generation, Sample
from tests.gpu.peaks import Peaks
from tests.sync.beside import order_of
from tests.sync.driven import DrivenRanks, Extra, drive

CONFIG = Path(__file__).with_name("cycle.yaml")
KEY = "key-of-this-test"
START_S = 400.0
COLLECTIVE_S = 600.0
TIMEOUT_S = 120.0
TOKENS = 64
LIMIT_BYTES = 1 << 30

Tamper = Callable[[int, list[str | None]], None]


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
        "limits": lambda: limits(torch.device("cuda", gpu)),
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
            samples = await generated(server.process.url, config, rollout, found)
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
        samples = await generated(server.process.url, config, 91, Found())
        await turns.to_trainer(91)
        found.control |= gap(samples, (await ranks.ask("logprobs", samples))[0])
    except Exception as error:  # whatever such an engine does is of interest
        found.control["error"] = f"{type(error).__name__}: {error}"[:500]
        await turns.to_trainer(91)
    await turns.to_engine(92, full_check=True)
    samples = await generated(server.process.url, config, 92, found)
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
    return EngineServer(config, process, scratch / "logs", environment=environment, secret=KEY)


async def release(server: EngineServer) -> None:
    """As after the bring-up."""
    await server.control.flush_cache()
    await server.control.release_memory()


async def generated(url: str, config: Config, version: int, found: Found) -> list[Sample]:
    """A rollout of random prompts; a response is the better the more small tokens it has."""
    shape = json.loads((Path(config.ckpt.hf_checkpoint) / "config.json").read_text(encoding="utf-8"))
    vocab, draw = int(shape["vocab_size"]), numpy.random.default_rng(version)
    per_prompt = config.rollout.n_samples_per_prompt
    prompts = [
        draw.integers(3, vocab, int(draw.integers(8, 32))).astype(numpy.int32)
        for _ in range(config.rollout.rollout_batch_size)
    ]
    params = SamplingParams(config.rollout.rollout_temperature, 1.0, -1, TOKENS)
    began = time.monotonic()
    async with EngineClient(url, concurrency=config.sglang.server_concurrency, secret=KEY) as client:
        requests = [
            (prompt, Request(prompt, params, f"{version}-{place}-{copy}"))
            for place, prompt in enumerate(prompts)
            for copy in range(per_prompt)
        ]
        responses = await asyncio.gather(*(client.generate(request) for _, request in requests))
    found.seconds[f"generate {version}"] = time.monotonic() - began
    found.versions.append(sorted({span.version for response in responses for span in response.versions}))
    samples = [
        _sample(index, index // per_prompt, prompt, response, vocab)
        for index, ((prompt, _), response) in enumerate(zip(requests, responses, strict=True))
    ]
    found.rewards.append(float(numpy.mean([sample.reward for sample in samples])))
    return samples


def _sample(index: int, group: int, prompt: numpy.ndarray[Any, Any], response: Generation, vocab: int) -> Sample:
    return Sample(
        index=index,
        group_index=group,
        tokens=numpy.concatenate([prompt, response.tokens]),
        response_len=len(response.tokens),
        reward=float(numpy.mean(response.tokens < vocab // 2)),
        rollout_logprobs=response.logprobs,
        finish_reason=response.finish_reason,
    )


def logprobs(actor: TrainActor, samples: Sequence[Sample]) -> list[numpy.ndarray[Any, Any]]:
    """Of the responses, by the trainer; [] where it has not the last stage."""
    batches = [collate_here(samples, [place], actor.config) for place in range(len(samples))]
    return [found.float().cpu().numpy() for found in actor.passes.logprobs(batches)]


def gap(samples: Sequence[Sample], theirs: Sequence[numpy.ndarray[Any, Any]]) -> dict[str, float]:
    """Between the engine's log-probs and the trainer's; the first token of a response is no decoded one."""
    ours = [sample.rollout_logprobs for sample in samples]
    assert all(logs is not None and len(logs) == len(other) for logs, other in zip(ours, theirs, strict=True))
    one = numpy.concatenate([logs[1:] for logs in ours if logs is not None]).astype(numpy.float64)
    other = numpy.concatenate([logs[1:] for logs in theirs]).astype(numpy.float64)
    errors = numpy.abs(one - other)
    return {
        "tokens": float(len(errors)),
        "mean": float(errors.mean()),
        "p99": float(numpy.quantile(errors, 0.99)),
        "max": float(errors.max()),
        "correlation": float(numpy.corrcoef(one, other)[0, 1]),
    }


def flip_a_bit(trainer: TrainerRank, bucket: int, payloads: list[str | None]) -> None:
    """In this rank's second payload of weights, after its checksum was taken."""
    if bucket != 2 or payloads[0] is None:
        return
    sync = trainer._publisher._sync
    assert sync is not None and sync._hand_over is not None
    memory = sync._hand_over._turns[bucket % TURNS]._memory
    assert memory is not None
    memory.tensor[order_of(payloads[0]).size // 2] ^= 1
    torch.cuda.synchronize()


def wrong_device(bucket: int, payloads: list[str | None]) -> None:
    """Each rank is given its neighbour's; with one rank nothing is wrong."""
    if bucket == 2 and len(payloads) > 1:
        payloads[:] = payloads[1:] + payloads[:1]


def say_wrong_device(bucket: int, payloads: list[str | None]) -> None:
    """As if the payload lay on another GPU."""
    if bucket == 2 and payloads[0] is not None:
        order = order_of(payloads[0])
        assert order.payload is not None
        payloads[0] = replace(order, payload={**order.payload, "uuid": "another"}).serialized()


def skip_forgetting(bucket: int, payloads: list[str | None]) -> None:
    """As a sender would that knows of no weights but those of the checkpoint."""
    if bucket == 0:
        payloads[:] = [_as_a_later_one(payload) for payload in payloads]


def _as_a_later_one(payload: str | None) -> str | None:
    if payload is None:
        return None
    order: Order = order_of(payload)
    return replace(order, first=False).serialized()


def limits(device: torch.device) -> Mapping[str, float]:
    """GB/s of plain copies: within the device (bytes read and written), and over pinned memory each way."""
    ones = torch.ones(LIMIT_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(ones)
    arena = Arena([TensorSpec((LIMIT_BYTES,), torch.uint8)], torch.device("cpu"), pinned=True)
    (host,) = arena.tensors
    copies: dict[str, Callable[[], object]] = {
        "device copy": lambda: other.copy_(ones),
        "device to host": lambda: host.copy_(ones, non_blocking=True),
        "host to device": lambda: other.copy_(host, non_blocking=True),
    }
    found = {}
    for name, copy in copies.items():
        copy()
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(5):
            copy()
        torch.cuda.synchronize(device)
        factor = 2 if name == "device copy" else 1
        found[name] = factor * 5 * LIMIT_BYTES / 1e9 / (time.perf_counter() - began)
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
