"""Weights of a segment that are quantised in one launch: one for each expert would cost a GPU more than the work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1hpc.checkpoint.fp8 import check_quantized, dequantize, quantize_into, scale_shape
from r1hpc.sync.buckets import Item, Segment
from r1hpc.sync.encoding import is_sent_as_it_is
from r1hpc.sync.form import SyncForm


@dataclass(frozen=True)
class Run:
    """Matrices of one shape and dtype that lie at equal distances in their segment."""

    items: tuple[Item, ...]

    @property
    def names(self) -> list[str]:
        """Of Hugging Face."""
        return [item.assembly.name.hf for item in self.items]

    @property
    def shape(self) -> tuple[int, int, int]:
        """[E, M, N] of all together."""
        rows, columns = self.items[0].assembly.name.shape
        return len(self.items), rows, columns

    @property
    def room_bytes(self) -> int:
        """Of all together in the dtype that they are trained in."""
        return math.prod(self.shape) * self.items[0].assembly.dtype.itemsize

    def room(self, memory: Tensor) -> Tensor:
        """[E, M, N] in that dtype; a view of `memory`, [room_bytes] uint8."""
        return memory.view(self.items[0].assembly.dtype).view(self.shape)

    def places(self, segment: Tensor) -> list[Tensor]:
        """For each tensor that a weight is sent as, those of all weights: [E, ...], views of the segment's bytes."""
        return [self._place(number, segment) for number in range(len(self.items[0].tensors))]

    def _place(self, number: int, segment: Tensor) -> Tensor:
        first = self.items[0].tensors[number]
        sent, itemsize = first.sent, first.sent.dtype.itemsize
        distance = self.items[1].tensors[number].begin - first.begin if len(self.items) > 1 else 0
        rows, columns = sent.shape
        return (
            segment[first.begin : self.items[-1].tensors[number].begin + sent.size_bytes]
            .view(sent.dtype)
            .as_strided((len(self.items), rows, columns), (distance // itemsize, columns, 1))
        )


def runs(segment: Segment, form: SyncForm) -> Iterator[Run]:
    """All weights of the segment that are quantised, each in one run: experts of a layer together, others alone."""
    alike: dict[tuple[object, ...], list[Item]] = {}
    for item in segment.items:
        name = item.assembly.name
        if not is_sent_as_it_is(name, form):
            of = name.hf if name.expert is None else (name.layer, name.hf.split(".")[-2])
            alike.setdefault((of, name.shape, item.assembly.dtype), []).append(item)
    for items in alike.values():
        yield from map(Run, _evenly_spaced(items))


def encode_run(run: Run, weights: Tensor, form: SyncForm, out: Sequence[Tensor]) -> Quantized:
    """Write what the weights [E, M, N] are sent as to `out`, which are the run's places.

    In block fp8 it does not wait for a GPU. Raises CheckpointError where values that fp8 stands for are not finite.
    """
    if form is SyncForm.FP8:
        codes, scales = out
        quantize_into(weights, codes, scales)
        return Quantized(run, weights, scales)
    codes = torch.empty(weights.shape, dtype=torch.float8_e4m3fn, device=weights.device)
    scales = torch.empty(len(weights), *scale_shape(weights.shape[1:]), device=weights.device)
    quantize_into(weights, codes, scales)
    found = Quantized(run, weights, scales)
    found.check()
    dequantize(codes, scales, name=run.names[0], out=out[0])
    return found


@dataclass(frozen=True)
class Quantized:
    """A run of which the scales are on their way."""

    run: Run
    weights: Tensor
    scales: Tensor

    def is_finite(self) -> Tensor:
        """Whether all weights are, [] bool; does not wait for a GPU."""
        return self.scales.amax().isfinite()

    def check(self) -> None:
        """Raise CheckpointError for a weight that is not finite."""
        check_quantized(self.run.names, self.weights, self.scales)


def _evenly_spaced(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Cut where the distance from one to the next changes, of the weights or of their scales."""
    run: list[Item] = []
    for item in items:
        if len(run) > 1 and _distances(run[-1], item) != _distances(run[0], run[1]):
            yield tuple(run)
            run = []
        run.append(item)
    if run:
        yield tuple(run)


def _distances(one: Item, next_one: Item) -> list[int]:
    return [b.begin - a.begin for a, b in zip(one.tensors, next_one.tensors, strict=True)]
