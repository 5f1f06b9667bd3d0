"""What a model asks of a torch_dist checkpoint, held against what the checkpoint has.

Megatron loads a checkpoint that lacks a chunk, whose vocabulary is of another size or whose dtype is another without
a word; every rule here is one that its own load lets pass, or reports without naming the tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from r1hpc.checkpoint.boxes import Box
from r1hpc.checkpoint.structure import VOCABULARY
from r1hpc.checkpoint.torch_dist import StoredTensor
from r1hpc.checkpoint.training_state import is_training_state

CASTABLE = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that say the same number, if not to the same digit; fp8 without its scales does not."""

SHOWN = 3
"""Names listed before "and N more"."""

Stored = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Request:
    """A box of a tensor that one rank reads."""

    key: str
    dtype: torch.dtype
    global_shape: tuple[int, ...]
    box: Box

    def __str__(self) -> str:
        return f"{self.key}{self.box}"


def problems_of(requests: Sequence[Request], stored: Stored, float32: Collection[str], cast: bool) -> list[str]:
    """Why `stored` cannot serve the requests of one rank; empty where it can.

    float32: keys that are float32 whatever the model's dtype. cast: one of CASTABLE may be converted to another.
    """
    one_of = {request.key: request for request in requests}
    pairs = [(request, stored[key]) for key, request in one_of.items() if key in stored]
    problems = list(_missing_keys(one_of.keys() - stored.keys()))
    problems += [problem for request, tensor in pairs for problem in _wrong_shape(request, tensor)]
    problems += [problem for request, tensor in pairs if request.key in float32 for problem in _narrow(request, tensor)]
    free = [(request, tensor) for request, tensor in pairs if request.key not in float32]
    problems += _other_dtype(free, CASTABLE if cast else ())
    same_shape = {request.key for request, tensor in pairs if request.global_shape == tensor.shape}
    return problems + list(_uncovered([request for request in requests if request.key in same_shape], stored))


def unread(requested: Collection[str], stored: Iterable[str]) -> list[str]:
    """The problem of tensors that no rank of the model asks for, but for those that it may leave unread.

    Those are multi-token prediction, and what a training run adds to its weights.
    """
    weights = (key for key in stored if not key.startswith("mtp.") and not is_training_state(key))
    left = sorted(key for key in weights if key not in requested)
    if not left:
        return []
    return [
        f"no rank of the model asks for {_some(left)}; every weight must be read:"
        " the model is smaller than the checkpoint, or made from another config.json"
    ]


def _missing_keys(keys: Collection[str]) -> Iterator[str]:
    if keys:
        yield (
            f"the checkpoint lacks {_some(sorted(keys))}: it is of another model, or was not converted whole;"
            " `python -m r1hpc.checkpoint inspect` lists what it has"
        )


def _wrong_shape(request: Request, tensor: StoredTensor) -> Iterator[str]:
    asked, found = request.global_shape, tensor.shape
    if asked == found:
        return
    if request.key in VOCABULARY and asked[1:] == found[1:]:
        yield (
            f"{request.key}: the model has {asked[0]} rows of vocabulary, the checkpoint {found[0]}; Megatron would"
            f" {'pad with zeros' if asked[0] > found[0] else 'cut'} without a word: build the model with exactly"
            f" {found[0]} rows (no padding to a multiple)"
        )
    else:
        yield (
            f"{request.key}: the model's shape is {list(asked)}, the checkpoint's {list(found)}; they must be equal:"
            " build the model from the config.json that the checkpoint was converted with"
        )


def _narrow(request: Request, tensor: StoredTensor) -> Iterator[str]:
    for dtype, owner in ((tensor.dtype, "checkpoint"), (request.dtype, "model")):
        if dtype != torch.float32:
            yield f"{request.key}: is {_name(dtype)} in the {owner}; it must be float32, or tokens change experts"


def _other_dtype(pairs: Iterable[tuple[Request, StoredTensor]], castable: Collection[torch.dtype]) -> Iterator[str]:
    keys: dict[tuple[torch.dtype, torch.dtype], list[str]] = {}
    for request, tensor in pairs:
        if request.dtype != tensor.dtype and not (request.dtype in castable and tensor.dtype in castable):
            keys.setdefault((request.dtype, tensor.dtype), []).append(request.key)
    for (asked, found), differing in keys.items():
        yield (
            f"{_some(sorted(differing))}: {_name(asked)} in the model, {_name(found)} in the checkpoint;"
            " build the model with the checkpoint's dtype, or ask for the conversion (cast=True)"
        )


def _uncovered(requests: Iterable[Request], stored: Stored) -> Iterator[str]:
    for request in requests:
        covered = sum(common.volume for _, common in stored[request.key].meeting(request.box))
        asked = request.box.volume
        if covered < asked:
            yield (
                f"{request}: the checkpoint holds {covered} of its {asked} elements; Megatron would leave the others"
                " as they were in memory: convert again"
            )
        elif covered > asked:
            yield (
                f"{request}: the checkpoint's chunks hold {covered} elements where there are {asked}, so two of them"
                " overlap: convert again"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(keys: Sequence[str]) -> str:
    noun = "tensor" if len(keys) == 1 else "tensors"
    rest = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {noun} ({', '.join(keys[:SHOWN])}{rest})"
