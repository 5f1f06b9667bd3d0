"""The tiny model, wrapped for training on the ranks of a test, with values and gradients that depend on names alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from r1hpc.config.training import OptimizerConfig
from r1hpc.model import compat
from r1hpc.model.build import build_model, weights
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.train.gradients import checkpoint_names
from r1hpc.train.optimizer import wrap
from tests.forked_ranks import Result, fork_ranks, join_gloo

TINY = Path(__file__).parents[2] / "configs/models/tiny-r1/config.json"
DEADLINE_S = 60.0
EXPERTS = ".experts."

OPTIMIZER = OptimizerConfig(lr=1e-2, adam_eps=1e-4, clip_grad=1.0, weight_decay=0.1)
"""As traps 11 have it: with a smaller eps, gradients near zero would decide by their sign."""


def on_ranks(
    work: Callable[[DistributedDataParallel], Result],
    scratch: Path,
    ranks: int = 1,
    layout: Layout = Layout(),  # noqa: B008
    dtype: torch.dtype = torch.float32,
) -> list[Result]:
    """What `work` returns on each rank for the wrapped model, which has the values of `value`."""
    hf = json.loads(TINY.read_text())
    rendezvous = scratch / "rendezvous"
    rendezvous.unlink(missing_ok=True)

    def on_rank(rank: int) -> Result:
        compat.prepare("cpu")
        join_gloo(rank, ranks, rendezvous, DEADLINE_S)
        layout.initialize()
        model = build_model(hf, layout, TrainSettings(dtype=dtype, device="cpu"))
        with torch.no_grad():
            names = checkpoint_names(model)
            for name, weight in weights(model).items():
                weight.copy_(value(names[name][0] if name in names else name, weight, "value"))
        return work(wrap(model))

    return fork_ranks(on_rank, ranks, DEADLINE_S)


def value(name: str, like: Tensor, what: str, step: int = 0) -> Tensor:
    """Random values of a tensor's shape, the same for the same name wherever it is; of experts, this rank's part."""
    draw = torch.Generator().manual_seed(zlib.crc32(f"{what} {name} {step}".encode()))
    if EXPERTS not in name:
        return torch.randn(like.shape, generator=draw)
    ranks, rank = parallel_state.get_expert_model_parallel_world_size(), parallel_state.get_expert_model_parallel_rank()
    whole = torch.randn((like.shape[0] * ranks, *like.shape[1:]), generator=draw)
    return whole[rank * like.shape[0] : (rank + 1) * like.shape[0]]


def give_gradients(ddp_model: DistributedDataParallel, step: int) -> None:
    """A gradient for every parameter, reduced over data parallelism: each rank's share is an equal, exact fraction."""
    for name, param in ddp_model.module.named_parameters():
        whole = value(checkpoint_names(ddp_model.module)[name][0], param, "gradient", step)
        group = ddp_model.expt_dp_group if EXPERTS in name else ddp_model.dp_cp_group
        param.main_grad.copy_(whole / dist.get_world_size(group))
    ddp_model.finish_grad_sync()
