"""Tokens a second of whole updates of the rehearsal's tiny model: packed, and one sample a micro-batch.

    python -m benchmarks.training_step [--rounds 5]

One process, on the CPU in float32 with one thread, or on a GPU in bfloat16 where there is one. An update is one pass
for the old log-probs and two optimizer steps over 64 samples of 40 to 300 tokens. Both ways in every round; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy
import torch
import torch.distributed as dist

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.config.training import GrpoConfig, OptimizerConfig, PerfConfig
from r1hpc.model.compat import Device
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import model_shape
from r1hpc.rehearsal.tiny_config import TINY_R1
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.train.actor import TrainActor
from r1hpc.train.settings import TrainerConfig
from r1hpc.types import Sample

SAMPLES, STEPS, GROUP = 64, 2, 8
MAX_TOKENS = 2048


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().rounds)))
    return 0


def measure(rounds: int = 5) -> dict[str, float]:
    """`tokens_per_s`, and the same with one sample a micro-batch."""
    with tempfile.TemporaryDirectory() as scratch:
        actor = make_actor(Path(scratch))
        rollout = make_rollout(actor.config.shape.vocab_size)
        packed, alone = actor.config.perf, PerfConfig()
        speeds: dict[str, list[float]] = {"tokens_per_s": [], "tokens_per_s_alone": []}
        actor.update(rollout, 0)
        for number in range(rounds):
            for name, perf in (("tokens_per_s", packed), ("tokens_per_s_alone", alone)):
                actor.config = replace(actor.config, perf=perf)
                stats = actor.update(rollout, number)
                seconds = stats.seconds["old_logprobs"] + stats.seconds["steps"]
                speeds[name].append(sum(step.num_tokens for step in stats.steps) / seconds)
                print(f"{name:20} {speeds[name][-1]:10.0f}  micro-batches a step {stats.steps[0].num_micro_batches}")
        dist.destroy_process_group()
    return {name: round(median(values), 1) for name, values in speeds.items()}


def make_actor(scratch: Path) -> TrainActor:
    """The tiny model, converted and loaded; a world of one process."""
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    write_tiny_model(scratch / "hf", mtp=False, fp8=False)
    source = open_checkpoint(scratch / "hf")
    convert_all(
        plan_conversion(source, scratch / "torch_dist", make_slices(5, 1, None, None, 1, "layout"), 1), 1, print
    )
    hugging_face = json.loads(TINY_R1.read_text(encoding="utf-8"))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{scratch}/rendezvous", rank=0, world_size=1)
    actor = TrainActor(
        TrainerConfig(
            hugging_face=hugging_face,
            shape=model_shape(hugging_face, TINY_R1),
            perf=PerfConfig(use_dynamic_batch_size=True, max_tokens_per_gpu=MAX_TOKENS),
            grpo=GrpoConfig(),
            optimizer=OptimizerConfig(optimizer_cpu_offload=True, use_precision_aware_optimizer=True),
            model=TrainSettings(dtype=torch.bfloat16 if device == "cuda" else torch.float32, device=device),
            temperature=1.0,
            samples_per_step=SAMPLES // STEPS,
            steps_per_rollout=STEPS,
            num_rollout=100,
            balance_data=True,
            seed=1,
        )
    )
    actor.load(scratch / "torch_dist")
    return actor


def make_rollout(vocab_size: int) -> Sequence[Sample]:
    """Random tokens and rewards."""
    drawn = numpy.random.default_rng(0)
    samples = []
    for index in range(SAMPLES):
        length = int(drawn.integers(40, 301))
        samples.append(
            Sample(
                index=index,
                group_index=index // GROUP,
                tokens=drawn.integers(0, vocab_size, length).astype(numpy.int32),
                response_len=length - 20,
                reward=float(drawn.integers(0, 2)),
            )
        )
    return samples


if __name__ == "__main__":
    raise SystemExit(main())
