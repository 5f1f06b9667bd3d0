"""A trainer alone in its process, with random weights made where it computes: none comes through a disk."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import nn

from r1hpc.actors.process_setup import trainer_environment
from r1hpc.config import Config, load_config
from r1hpc.model.build import weights
from r1hpc.plan.model_shape import ModelShape, model_shape
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.train.actor import TrainActor
from r1hpc.train.learning_rate import LearningRate, Schedule
from r1hpc.train.settings import TrainerConfig
from r1hpc.types import Sample

CONFIG = Path(__file__).resolve().parents[1] / "tests/gpu/cycle.yaml"
PROMPT_LEN = 64
CALM = ("linear_proj.weight", "linear_fc2.weight", "linear_fc2_weight")
"""Of the matrices whose products are added to the stream: smaller, so that no layer drowns the one before."""

HEADS_OF_R1 = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
GROUPS = {"num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "max_position_embeddings": 65536}
SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {},
    "0.1b": HEADS_OF_R1
    | GROUPS
    | {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "n_routed_experts": 16,
        "moe_intermediate_size": 512,
        "q_lora_rank": 256,
        "vocab_size": 8192,
    },
    "0.5b": HEADS_OF_R1
    | GROUPS
    | {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 5,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 32,
        "moe_intermediate_size": 704,
        "q_lora_rank": 512,
        "vocab_size": 8192,
    },
    "1.2b": HEADS_OF_R1
    | GROUPS
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 5,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "n_routed_experts": 32,
        "moe_intermediate_size": 1408,
        "q_lora_rank": 512,
        "vocab_size": 8192,
    },
}
"""Of DeepSeek-R1's architecture, over the values of the rehearsal's tiny model; 1.2b is that of the colocated cycle."""


def on_gpu() -> bool:
    """Whether this process computes on a GPU."""
    return torch.cuda.is_available()


@dataclass(frozen=True)
class Workload:
    """A model, and the samples of an update: one optimizer step."""

    size: str
    samples: int
    length: int
    """Tokens of each sample."""
    max_tokens: int
    """Of a micro-batch."""

    @property
    def values(self) -> dict[str, Any]:
        """config.json."""
        return tiny_config(TINY_R1, SIZES[self.size], mtp=False, fp8=False)

    @property
    def shape(self) -> ModelShape:
        return model_shape(self.values, TINY_R1)

    def config(self, scratch: Path) -> Config:
        """That of a run on this machine: bf16 on a GPU, else float32."""
        (scratch / "engine").mkdir(exist_ok=True)
        (scratch / "engine" / "config.json").write_text(json.dumps(self.values), encoding="utf-8")
        gpu = on_gpu()
        overrides = [
            f"vars.WORK={scratch}",
            f"hosts.device={'cuda' if gpu else 'cpu'}",
            f"megatron.params_dtype={'bf16' if gpu else 'fp32'}",
            "rollout.n_samples_per_prompt=2",
            f"rollout.rollout_batch_size={self.samples // 2}",
            f"rollout.rollout_max_response_len={self.length}",
            "rollout.num_steps_per_rollout=1",
            f"perf.max_tokens_per_gpu={self.max_tokens}",
            "optimizer.lr=1.0e-6",
            # As the planner refuses what cannot be converted: a checkpoint in one slice.
            "convert.pipeline_model_parallel_size=1",
            "convert.expert_model_parallel_size=1",
            "convert.decoder_first_pipeline_num_layers=null",
            "convert.decoder_last_pipeline_num_layers=null",
        ]
        return load_config(CONFIG, overrides=overrides).config

    def make_samples(self) -> list[Sample]:
        """Random tokens; of two samples of a prompt one is right."""
        draw = numpy.random.default_rng(0)
        vocab = self.shape.vocab_size
        prompt = min(PROMPT_LEN, self.length // 2)
        return [
            Sample(
                index=index,
                group_index=index // 2,
                tokens=draw.integers(0, vocab, self.length).astype(numpy.int32),
                response_len=self.length - prompt,
                reward=float(index % 2),
            )
            for index in range(self.samples)
        ]


@contextmanager
def world() -> Iterator[Path]:
    """A world of one process as a run makes it, as long as the block; gives a folder for it."""
    os.environ.update(trainer_environment("cuda" if on_gpu() else "cpu", "lo"))
    if on_gpu():
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        # No device is named: communicators are made when they are first used, as in a run.
        dist.init_process_group(
            "nccl" if on_gpu() else "gloo", init_method=f"file://{scratch}/rendezvous", rank=0, world_size=1
        )
        yield Path(scratch)
        dist.destroy_process_group()


@contextmanager
def trainer(workload: Workload, scratch: Path) -> Iterator[TrainActor]:
    """An actor that may update, as long as the block."""
    config = workload.config(scratch)
    actor = TrainActor(TrainerConfig.of(config, workload.values, workload.shape))
    fill(actor)
    yield actor
    actor.optimizer.close()
    for name in actor.weights.names:
        actor.weights.release(name)
    parallel_state.destroy_model_parallel()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw all weights where they lie."""
    torch.manual_seed(0)
    for name, weight in weights(model).items():
        if weight.dim() == 1:
            weight.fill_(0.0 if "bias" in name else 1.0)
        else:
            weight.normal_(std=0.006 if name.endswith(CALM) else 0.02)


@torch.no_grad()
def fill(actor: TrainActor) -> None:
    """Give the model random weights and be as after `TrainActor.load`."""
    randomize(actor.model)
    actor.optimizer.restart()
    actor._begin(LearningRate(Schedule.of(actor.config.optimizer, actor.config.total_steps)))


def with_max_tokens(actor: TrainActor, max_tokens: int, samples: Sequence[Sample]) -> None:
    """Let the actor's next update be of these samples, in micro-batches of so many tokens."""
    perf = actor.config.perf.model_copy(update={"max_tokens_per_gpu": max_tokens})
    actor.config = replace(actor.config, perf=perf, samples_per_step=len(samples), steps_per_rollout=1)


def parameters(actor: TrainActor) -> int:
    """Of the model."""
    return sum(parameter.numel() for parameter in actor.model.parameters())


def used_bytes() -> int:
    """Of the whole GPU, by anyone, as the driver counts. Asked by another process: this one may use nothing yet."""
    if not on_gpu():
        return 0
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return int(found.stdout.split()[0]) * 2**20


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if on_gpu():
        torch.cuda.synchronize()
