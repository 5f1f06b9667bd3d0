"""What a model asks of a torch_dist checkpoint, held against what the checkpoint has.

Megatron loads a checkpoint that lacks a chunk, whose vocabulary is of another size or whose dtype is another without
a word; every rule here is one that its own load lets pass, or reports without naming the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

IGNORED_PREFIXES = ("mtp.", "optimizer.", "rng_state", "rerun_state_machine_state")
"""Stored tensors that a model may leave unread: multi-token prediction, and what a training run adds to its weights."""

CASTABLE = (torch.bfloat16, torch.float16, torch.float32)

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")

SHOWN = 3
"""Names listed before "and N more"."""

Stored = Mapping[str, TensorStorageMetadata]
"""The tensors of a checkpoint: `Metadata.state_dict_metadata` without its byte entries."""


@dataclass(frozen=True)
class Request:
    """A box of a tensor that one rank reads."""

    key: str
    dtype: torch.dtype
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        box = ", ".join(f"{begin}:{begin + size}" for begin, size in zip(self.offset, self.sizes, strict=True))
        return f"{self.key}[{box}]"


def problems_of(requests: Sequence[Request], stored: Stored, float32: Collection[str], cast: bool) -> list[str]:
    """Why `stored` cannot serve the requests of one rank; empty where it can.

    float32: keys that are float32 whatever the model's dtype. cast: another floating-point dtype may be converted.
    """
    first = {request.key: request for request in requests}
    problems = list(_missing_keys(first, stored))
    sound = set()
    for key in first.keys() & stored.keys():
        found = list(_wrong_shape(first[key], stored[key])) or list(
            _wrong_dtype(first[key], stored[key], float32, cast)
        )
        problems += found
        if not found:
            sound.add(key)
    return problems + list(_uncovered([request for request in requests if request.key in sound], stored))


def unread(requested: Collection[str], stored: Iterable[str]) -> list[str]:
    """The problem of tensors that no rank of the model asks for, but for those that it may leave unread."""
    left = sorted(key for key in stored if key not in requested and not key.startswith(IGNORED_PREFIXES))
    if not left:
        return []
    return [
        f"no rank of the model asks for {_some(left)}; every weight must be read:"
        " the model is smaller than the checkpoint, or made from another config.json"
    ]


def _missing_keys(requests: Mapping[str, Request], stored: Stored) -> Iterator[str]:
    missing = sorted(requests.keys() - stored.keys())
    if missing:
        yield (
            f"the checkpoint lacks {_some(missing)}: it is of another model, or was not converted whole;"
            " `python -m r1hpc.checkpoint inspect` lists what it has"
        )


def _wrong_shape(request: Request, entry: TensorStorageMetadata) -> Iterator[str]:
    asked, found = request.global_shape, tuple(entry.size)
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


def _wrong_dtype(request: Request, entry: TensorStorageMetadata, float32: Collection[str], cast: bool) -> Iterator[str]:
    found = entry.properties.dtype
    if request.key in float32:
        for dtype, owner in ((found, "the checkpoint"), (request.dtype, "the model")):
            if dtype != torch.float32:
                yield f"{request.key}: is {_name(dtype)} in {owner}; it must be float32, or tokens change experts"
    elif found != request.dtype and not (cast and {found, request.dtype} <= set(CASTABLE)):
        yield (
            f"{request.key}: the model's dtype is {_name(request.dtype)}, the checkpoint's {_name(found)};"
            " build the model with the checkpoint's, or ask for the conversion (cast=True)"
        )


def _uncovered(requests: Iterable[Request], stored: Stored) -> Iterator[str]:
    for request in requests:
        chunks = stored[request.key].chunks
        covered = sum(_overlap(request, tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in chunks)
        asked = math.prod(request.sizes)
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


def _overlap(request: Request, offsets: Sequence[int], sizes: Sequence[int]) -> int:
    """Elements that a chunk shares with the box asked for."""
    elements = 1
    for begin, size, chunk_begin, chunk_size in zip(request.offset, request.sizes, offsets, sizes, strict=True):
        length = min(begin + size, chunk_begin + chunk_size) - max(begin, chunk_begin)
        if length <= 0:
            return 0
        elements *= length
    return elements


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(keys: Sequence[str]) -> str:
    noun = "tensor" if len(keys) == 1 else "tensors"
    rest = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{len(keys)} {noun} ({', '.join(keys[:SHOWN])}{rest})"
