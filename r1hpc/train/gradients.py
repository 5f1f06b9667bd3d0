"""Gradients are finite before they are summed over ranks: afterwards nobody could say whose was not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from r1hpc.checkpoint.collective import everyones
from r1hpc.errors import R1hpcError

MOST_NAMED = 20
"""Parameters in the message; a NaN loss makes every gradient of every rank NaN."""


class GradientError(R1hpcError):
    """Gradients that are not finite, with rank, layer and parameter of each; the same on every rank."""


@dataclass(frozen=True)
class BadGradient:
    """A parameter of a rank whose gradient is not finite."""

    rank: int
    place: str
    """Of the rank in the parallel layout."""
    name: str
    """As in a checkpoint: with the number of the layer in the whole model."""
    layer: int | None
    """In the whole model, from 0; null outside the layers."""
    nans: int
    infinities: int
    size: int

    def __str__(self) -> str:
        layer = f"layer {self.layer}, " if self.layer is not None else ""
        return (
            f"rank {self.rank} ({self.place}): {layer}{self.name}: {self.nans} NaN and {self.infinities} infinite of"
            f" {self.size} values"
        )


def finalize_checked(
    model: Sequence[DistributedDataParallel],
    num_tokens: Tensor | None = None,
    pg_collection: ProcessGroupCollection | None = None,
    force_all_reduce: bool = False,
) -> None:
    """Megatron's config.finalize_model_grads_func: check this rank's gradients, then reduce and scale as upstream."""
    check_gradients(model)
    finalize_model_grads(list(model), num_tokens, pg_collection, force_all_reduce)


def check_gradients(model: Sequence[DistributedDataParallel]) -> None:
    """Raise the same GradientError on every rank if any rank has a gradient that is not finite. Collective.

    Reads each gradient buffer once and allocates nothing of its size.
    """
    peaks = [_peak(buffer.grad_data) for chunk in model for buffer in chunk.buffers + chunk.expert_parallel_buffers]
    device = peaks[0].device if peaks else torch.device("cpu")
    bad = torch.tensor(0.0, device=device)
    for peak in peaks:
        bad = torch.maximum(bad, (~torch.isfinite(peak)).float())
    world = parallel_state.get_intra_distributed_optimizer_instance_group()
    dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=world)
    if bad.item():
        mine = [found for chunk in model for found in _bad_gradients(chunk.module)]
        raise GradientError(_message([found for of_rank in everyones(mine) for found in of_rank]))


def checkpoint_names(model: nn.Module) -> dict[str, tuple[str, int | None]]:
    """Of each parameter, by its name on this rank: its name in a checkpoint, and its layer in the whole model."""
    layers = {
        f"{name}.": (f"{name.rpartition('.')[0]}.{module.layer_number - 1}.", module.layer_number - 1)
        for name, module in model.named_modules()
        if isinstance(module, TransformerLayer)
    }
    names: dict[str, tuple[str, int | None]] = {}
    for name, _ in model.named_parameters():
        names[name] = (name, None)
        for local, (whole, layer) in layers.items():
            if name.startswith(local):
                names[name] = (whole + name.removeprefix(local), layer)
    return names


def _peak(gradients: Tensor) -> Tensor:
    """The largest magnitude; NaN if any value is NaN."""
    if not gradients.numel():
        return gradients.new_zeros(())
    peak: Tensor = torch.linalg.vector_norm(gradients, ord=math.inf)
    return peak


def _bad_gradients(model: nn.Module) -> Iterator[BadGradient]:
    names = checkpoint_names(model)
    for name, param in model.named_parameters():
        if not param.requires_grad or torch.isfinite(_peak(param.main_grad)):  # type: ignore[attr-defined]
            continue
        gradient: Tensor = param.main_grad  # type: ignore[attr-defined]
        whole, layer = names[name]
        yield BadGradient(
            rank=dist.get_rank(),
            place=_place(),
            name=whole,
            layer=layer,
            nans=int(gradient.isnan().sum()),
            infinities=int(gradient.isinf().sum()),
            size=gradient.numel(),
        )


def _place() -> str:
    return (
        f"tp {parallel_state.get_tensor_model_parallel_rank()}, pp {parallel_state.get_pipeline_model_parallel_rank()},"
        f" cp {parallel_state.get_context_parallel_rank()}, dp {parallel_state.get_data_parallel_rank()},"
        f" ep {parallel_state.get_expert_model_parallel_rank()}"
    )


def _message(found: Sequence[BadGradient]) -> str:
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    ranks = len({bad.rank for bad in found})
    return "\n".join(
        [
            f"{len(found)} gradients on {ranks} of {dist.get_world_size()} ranks are not finite; no parameter was"
            " changed, and the last checkpoint is as good as before. The sample or the layer named first is where to"
            " look:",
            *(f"  {line}" for line in [*map(str, found[:MOST_NAMED]), *more]),
        ]
    )
