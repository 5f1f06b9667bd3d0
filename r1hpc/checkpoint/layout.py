"""How a torch_dist checkpoint is cut: every Hugging Face tensor into chunks, tensors into files, files into slices.

A pure function of the names and the configuration, so that every task and the one that publishes agree without talking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.shares import contiguous_shares, deal_largest_first

FILE_BYTES = 4 << 30
"""A file is closed before it grows beyond this: it is what a killed task loses."""


@dataclass(frozen=True)
class Chunk:
    """A box of a global tensor, stored as one piece."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Slices:
    """How the work is divided: pipeline slices x expert slices of the recipe, or equal bytes."""

    pipeline: tuple[int, ...]
    """Layers of each pipeline slice."""
    expert: int
    """Expert slices of each pipeline slice."""
    by_bytes: bool = False
    """Ignore the layers and cut the tensors, in the order of the model, into equal bytes."""

    @property
    def count(self) -> int:
        """Slices in all."""
        return len(self.pipeline) * self.expert


def item_bytes(name: TensorName) -> int:
    """Bytes of one element in torch_dist: bf16, or float32 where it stays so."""
    return 4 if name.float32 else 2


def size_bytes(name: TensorName) -> int:
    """Payload of a tensor in torch_dist; a copy is not stored."""
    return 0 if name.copy_of else math.prod(name.shape) * item_bytes(name)


def chunks(name: TensorName, pieces: int) -> tuple[Chunk, ...]:
    """The chunks of a tensor that is cut along the axis that tensor parallelism splits, `pieces` or a divisor of it.

    As Megatron's own writer does at TP = pieces. Any TP can load any number; there each rank reads only its own.
    """
    lead = len(name.global_shape) - len(name.shape)
    if name.split_axis is None or pieces == 1:
        return (Chunk(name.offset, name.box),)
    count = math.gcd(name.shape[name.split_axis], pieces)
    axis = lead + name.split_axis
    step = name.box[axis] // count
    return tuple(
        Chunk(
            _replace(name.offset, axis, name.offset[axis] + index * step),
            _replace(name.box, axis, step),
        )
        for index in range(count)
    )


def cut_into_slices(names: Sequence[TensorName], slices: Slices) -> list[list[TensorName]]:
    """The tensors of each slice, slice p * expert + e, in the order of the model.

    By layout: layers go to pipeline slices, embedding to the first, final norm, head and prediction layers to the last;
    experts to expert slices in equal runs, as expert parallelism does; the rest of a layer, which ranks of the recipe's
    layout hold four times over, is written once, by the slices that have least.
    """
    if slices.by_bytes:
        return contiguous_shares(list(names), size_bytes, slices.count)
    position = {name.hf: number for number, name in enumerate(names)}
    cut: list[list[TensorName]] = []
    for stage in _stages(names, slices.pipeline):
        experts = [
            [name for name in stage if _expert_slice(name, slices.expert) == index] for index in range(slices.expert)
        ]
        rest = [name for name in stage if name.expert is None]
        dealt = deal_largest_first(rest, size_bytes, [sum(map(size_bytes, share)) for share in experts])
        for share, more in zip(experts, dealt, strict=True):
            cut.append(sorted(share + more, key=lambda name: position[name.hf]))
    return cut


def cut_into_files(names: Sequence[TensorName], file_bytes: int = FILE_BYTES) -> list[list[TensorName]]:
    """The tensors of each file of one slice, in order; a tensor larger than a file has one to itself."""
    files: list[list[TensorName]] = []
    filled = 0
    for name in names:
        if not files or (filled + size_bytes(name) > file_bytes and filled):
            files.append([])
            filled = 0
        files[-1].append(name)
        filled += size_bytes(name)
    return files


def _replace(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])


def _expert_slice(name: TensorName, count: int) -> int | None:
    if name.expert is None:
        return None
    return name.expert * count // name.global_shape[0]


def _stages(names: Sequence[TensorName], pipeline: Sequence[int]) -> list[list[TensorName]]:
    ends = [sum(pipeline[: number + 1]) for number in range(len(pipeline))]
    stages: list[list[TensorName]] = [[] for _ in pipeline]
    for name in names:
        if name.layer is not None:
            stage = next((number for number, end in enumerate(ends) if name.layer < end), len(stages) - 1)
        else:
            stage = 0 if name.key.startswith("embedding.") else len(stages) - 1
        stages[stage].append(name)
    return stages
