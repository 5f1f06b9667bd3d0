"""Puts a payload into SGLang's model: experts where they lie, all at once; everything else by SGLang's own loader.

SGLang's loader looks each tensor up among three names for every expert of the model and copies it by itself, which
takes a GPU far longer than the bytes do. Where an expert belongs is known here (engine_weights.Live), but not taken for
granted: SGLang loads one expert of every payload, and only if that lies where it was expected, bit for bit, the others
are put beside it. Else, and for experts that are cut by tensor parallelism, its loader does them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r1hpc.sync.engine_weights import Expert, Live

Named = tuple[str, Tensor]
"""A Hugging Face tensor."""


@dataclass(frozen=True)
class _Placed:
    """A tensor of an expert, and the part of a parameter, of the same shape and dtype, that should become it."""

    expert: Expert
    named: Named
    place: Tensor


def load_weights(model: nn.Module, tensors: Sequence[Named]) -> None:
    """Put the tensors into the model."""
    live = Live(model)
    whole = [placed for named in tensors if (placed := _whole_expert(live, named)) is not None]
    first = [placed for placed in whole if placed.expert.is_of(whole[0].expert)]
    others = [placed for placed in whole if not placed.expert.is_of(whole[0].expert)]
    left = {placed.named[0] for placed in others}
    _load(model, [named for named in tensors if named[0] not in left])
    if all(_same_bytes(placed.place, placed.named[1]) for placed in first):
        _copy(others)
    else:
        _load(model, [placed.named for placed in others])


def _whole_expert(live: Live, named: Named) -> _Placed | None:
    """null for what is no expert's, another rank's, or only in part this rank's."""
    name, tensor = named
    expert = Expert.of(name)
    if expert is None or (place := live.expert_place(expert)) is None:
        return None
    alike = place.shape == tensor.shape and place.dtype == tensor.dtype and place.is_contiguous()
    return _Placed(expert, named, place) if alike else None


def _load(model: nn.Module, tensors: Sequence[Named]) -> None:
    if tensors:
        model.load_weights(tensors)  # type: ignore[operator]  # what SGLang serves has it


def _copy(placed: Sequence[_Placed]) -> None:
    """In a few launches, whatever the dtypes."""
    if placed:
        torch._foreach_copy_([_bytes(each.place) for each in placed], [_bytes(each.named[1]) for each in placed])


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    """Its memory, without a copy."""
    return tensor.view(-1).view(torch.uint8)
