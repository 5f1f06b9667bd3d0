"""A trainer that sleeps and wakes many times, its process groups destroyed and made again: what it computes and keeps.

python -m tests.train.process_groups_soak 1000
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from r1hpc.actors.place import Rendezvous
from r1hpc.actors.rendezvous import join
from r1hpc.train.actor import TrainActor
from r1hpc.train.update_stats import UpdateStats
from r1hpc.types import Sample
from tests.forked_ranks import fork_ranks
from tests.train.parity.run import Case, Grid, Models, loaded_actor
from tests.train.parity.samples import make_samples
from tests.train.tiny_models import convert_tiny_models

SOAK = Grid(tp=2, pp=4, cp=2, last_layers=2)
CYCLE_S = 30.0
"""More than one takes on a busy machine."""


@dataclass(frozen=True)
class Kept:
    """What one process has open, and what torch has of its groups in books."""

    descriptors: int
    threads: int
    resident_mib: float
    store_keys: int
    registered: int

    @classmethod
    def now(cls) -> Kept:
        process = psutil.Process()
        world = distributed_c10d._world
        books: tuple[Sized, ...] = (
            world.pg_map,
            world.pg_names,
            world.pg_group_ranks,
            world.pg_to_tag,
            world.tags_to_pg,
            world.pg_backend_config,
        )
        return cls(
            descriptors=process.num_fds(),
            threads=process.num_threads(),
            resident_mib=process.memory_info().rss / 2**20,
            store_keys=distributed_c10d._get_default_store().num_keys(),
            registered=sum(len(book) for book in books),
        )


@dataclass(frozen=True)
class Lived:
    """One rank's life."""

    first: UpdateStats
    last: UpdateStats
    weights: dict[str, Tensor]
    random_state: Tensor
    kept: list[Kept]
    """After the first cycles, and after the last."""
    seconds: tuple[float, float]
    """Of a cycle: asleep until groups are gone, awake until they are there."""


def live(
    grid: Grid, models: Models, samples: list[Sample], cycles: int, *, rebuild: bool, looks: int = 2, settle: int = 5
) -> list[Lived]:
    """Update, sleep and wake so often, update again; by rank."""
    port = free_port()

    def on_rank(rank: int) -> Lived:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        deadline_s = 60.0 + cycles * CYCLE_S
        join(Rendezvous("127.0.0.1", port, grid.world_size, 60.0, deadline_s), rank, torch.device("cpu"))
        actor = loaded_actor(RebuildCase(grid) if rebuild else Case(grid), models)
        lived = _life(actor, samples, cycles, looks, settle)
        dist.barrier()
        return lived

    return fork_ranks(on_rank, grid.world_size, 60.0 + cycles * CYCLE_S)


def _life(actor: TrainActor, samples: list[Sample], cycles: int, looks: int, settle: int) -> Lived:
    first = actor.update(samples, 0)
    at = {settle + (cycles - settle) * look // (looks - 1) for look in range(looks)}
    kept = []
    asleep = awake = 0.0
    for cycle in range(1, cycles + 1):
        began = time.monotonic()
        actor.sleep()
        slept = time.monotonic()
        actor.wake()
        asleep, awake = asleep + slept - began, awake + time.monotonic() - slept
        use_every_group()
        if cycle in at:
            dist.barrier()
            kept.append(Kept.now())
            if dist.get_rank() == 0:
                print(cycle, kept[-1], f"{asleep / cycle:.3f} s + {awake / cycle:.3f} s", file=sys.stderr, flush=True)
    last = actor.update(samples, 1)
    weights = {name: tensor.clone() for name, tensor in actor.weights.tensors("actor").items()}
    return Lived(first, last, weights, torch.get_rng_state(), kept, (asleep / cycles, awake / cycles))


class RebuildCase(Case):
    """A case whose trainer rebuilds its groups."""

    def config(self, hugging_face):  # type: ignore[no-untyped-def]
        return replace(super().config(hugging_face), rebuild_groups=True)


def use_every_group() -> None:
    """A sum over each group of this rank but the default one: each has all its members, and none another's."""
    default = dist.group.WORLD
    groups = [group for group in distributed_c10d._world.pg_map if group is not default]
    assert groups
    for group in sorted(groups, key=lambda group: int(group.group_name)):
        total = torch.tensor([dist.get_rank()])
        dist.all_reduce(total, group=group)
        assert total.item() == sum(dist.get_process_group_ranks(group)), group.group_desc


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def main(cycles: int) -> None:
    """Soak, and print what rank 0 kept on the way."""
    with tempfile.TemporaryDirectory() as directory:
        models = convert_tiny_models(Path(directory))
        samples = make_samples(8, models.hugging_face["vocab_size"])
        ranks = live(SOAK, models, samples, cycles, rebuild=True, looks=11)
    for rank, lived in enumerate(ranks):
        before, after = lived.kept[0], lived.kept[-1]
        print(f"rank {rank}: {before} -> {after}, {lived.seconds[0]:.2f} s + {lived.seconds[1]:.2f} s a cycle")


if __name__ == "__main__":
    main(int(sys.argv[1]))
