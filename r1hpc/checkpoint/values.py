"""Weights of a torch_dist checkpoint compared, bit for bit, with the Hugging Face checkpoint they came from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.chunk_reader import ChunkReader
from r1hpc.checkpoint.findings import Verification
from r1hpc.checkpoint.fold import template
from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint
from r1hpc.checkpoint.layout import item_bytes
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.placement import find_place
from r1hpc.checkpoint.scratch import Scratch
from r1hpc.checkpoint.torch_dist import TorchDist
from r1hpc.checkpoint.workers import Advance, Work
from r1hpc.errors import CheckpointError

_BATCH_BYTES = 256 << 20
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Batch:
    """Neighbours in the source: what one worker compares in one go."""

    names: tuple[TensorName, ...]

    def __str__(self) -> str:
        return f"{self.names[0].hf} to {self.names[-1].hf}"


class ValueCheck:
    """Compares batches; each process that calls it reads through buffers and files of its own."""

    def __init__(self, checkpoint: TorchDist, source: HfCheckpoint, recorded: Mapping[str, str]) -> None:
        """recorded: hash of each source tensor when it was converted; {} where that is not known."""
        self._bands = BandReader(source)
        self._chunks = ChunkReader(checkpoint)
        self._recorded = recorded
        self._scratch = Scratch()

    def __call__(self, batch: Batch, advance: Advance) -> list[str]:
        """What differs, each problem naming file, key and place; [] if nothing does."""
        found = []
        for name in batch.names:
            try:
                problem = self._compare(name, advance)
            except CheckpointError as error:
                problem = str(error)
            if problem:
                found.append(problem)
        return found

    def stored(self, names: Sequence[TensorName]) -> list[TensorName]:
        """Those that the checkpoint holds: one of a training run may lack the prediction layers."""
        keys, num_layers = self._chunks.checkpoint.tensors.keys(), self._bands.checkpoint.shape.num_layers
        return [name for name in names if find_place(name, num_layers, keys) is not None]

    def _compare(self, name: TensorName, advance: Advance) -> str | None:
        checkpoint, source = self._chunks.checkpoint, self._bands.checkpoint
        place = find_place(name, source.shape.num_layers, checkpoint.tensors.keys())
        assert place is not None, f"{name.hf} is not among those stored"
        stored = checkpoint.tensors[place.key]
        differing, first = 0, ""
        for row, values in self._bands.bands(name.hf):
            box = place.rows(row, len(values), len(name.shape))
            expected = values.to(stored.dtype).view(box.sizes)
            held = self._chunks.read_box(place.key, box, self._scratch.tensor(box.sizes, stored.dtype))
            advance(values.nbytes)
            if _same_bytes(held, expected):
                continue
            wrong = _bits(held) != _bits(expected)
            if not differing:
                at = wrong.nonzero()[0].tolist()
                index = [begin + step for begin, step in zip(box.offset, at, strict=True)]
                first = f"{index}: {held[tuple(at)].item()!r} where the source has {expected[tuple(at)].item()!r}"
            differing += int(wrong.sum())
        if not differing:
            return None
        file = next(checkpoint.directory / chunk.extent.file for chunk, _ in stored.meeting(place.box))
        return (
            f"{file}: {place.key} {place.box} differs from {name.hf} of {source.entries[name.hf].file} in "
            f"{differing:,} of {place.box.volume:,} elements, first at {first}{self._blame(name)}"
        )

    def _blame(self, name: TensorName) -> str:
        if name.hf in self._recorded and self._recorded[name.hf] != self._bands.hashes[name.hf]:
            return "; the source has changed since the conversion"
        return ""


def compare_values(
    check: Work[Batch, list[str]],
    names: Sequence[TensorName],
    order: HfCheckpoint,
    what: str,
    verification: Verification,
) -> None:
    """Let workers check `names`, or a sample of them, in the order in which `order` stores them."""
    count = verification.scope.sample
    chosen = list(names) if count is None else sample(names, count)
    verification.run("values", batches(chosen, order), sum(map(_size_bytes, chosen)), check)
    shown = f"{len(chosen):,}" if count is None else f"a sample of {len(chosen):,} of {len(names):,}"
    verification.findings.checked.append(f"values: {shown} tensors {what}")


def batches(names: Sequence[TensorName], source: HfCheckpoint) -> list[Batch]:
    """All of `names` in the order in which the source stores them, cut into batches."""
    ordered = sorted(names, key=lambda name: (source.entries[name.hf].file, source.entries[name.hf].begin))
    cut: list[list[TensorName]] = []
    filled = 0
    for name in ordered:
        if not cut or filled + _size_bytes(name) > _BATCH_BYTES:
            cut.append([])
            filled = 0
        cut[-1].append(name)
        filled += _size_bytes(name)
    return [Batch(tuple(part)) for part in cut]


def _size_bytes(name: TensorName) -> int:
    """Bytes to compare; of a copy too, which is compared with the tensor it repeats."""
    return torch.Size(name.shape).numel() * item_bytes(name)


def sample(names: Sequence[TensorName], count: int, seed: int = 0) -> list[TensorName]:
    """`count` tensors, one of each kind among them whatever the count: every layer has its own, so has every expert."""
    draw = random.Random(seed)
    shuffled = list(names)
    draw.shuffle(shuffled)
    first = {template(name.hf)[0]: name for name in reversed(shuffled)}
    chosen = dict.fromkeys(first.values())
    for name in shuffled:
        if len(chosen) >= count:
            break
        chosen.setdefault(name)
    return list(chosen)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Bit patterns: zeros of either sign are equal as numbers."""
    return values.view(_INTEGER[values.dtype.itemsize])


def _same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """torch.equal goes element by element: the wider, the faster."""
    a, b = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other))
    whole = a.numel() // 8 * 8
    return torch.equal(a[:whole].view(torch.int64), b[:whole].view(torch.int64)) and torch.equal(a[whole:], b[whole:])
