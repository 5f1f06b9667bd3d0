"""python -m tests.gpu.two_gpus RANK WORLD SCRATCH: one rank of the trainer on NCCL, for test_trainer_two_gpus."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from r1hpc.actors.place import Rendezvous
from r1hpc.actors.rendezvous import join
from tests.train.parity.run import gradient_parts, loaded_actor


def main(rank: int, world: int, scratch: Path) -> None:
    """Compute the gradient of a step; then train in it, save, resume and train the same again."""
    case, models, samples, port = pickle.loads((scratch / "work.pkl").read_bytes())
    torch.cuda.set_device(rank)
    join(Rendezvous("127.0.0.1", port, world, 60.0, 120.0), rank, torch.device("cuda", rank))
    actor = loaded_actor(case, models)
    found: dict[str, Any] = {"gradient": gradient_parts(actor, samples)}
    directory = scratch / f"iter_0000000-{world}"
    actor.update(samples, 0)
    actor.sleep()
    actor.begin_save(directory, 0)
    actor.finish_save()
    found["next"] = [step.metrics["loss"] for step in actor.update(samples, 1).steps]
    actor.resume(directory)
    found["resumed"] = [step.metrics["loss"] for step in actor.update(samples, 1).steps]
    (scratch / f"found-{world}-{rank}.pkl").write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
