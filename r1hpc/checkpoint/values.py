"""Weights of a torch_dist checkpoint compared, bit for bit, with the Hugging Face checkpoint they came from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.chunk_reader import ChunkReader
from r1hpc.checkpoint.differences import Differences
from r1hpc.checkpoint.findings import Verification
from r1hpc.checkpoint.fold import template
from r1hpc.checkpoint.hf_checkpoint import SCALE_SUFFIX, HfCheckpoint
from r1hpc.checkpoint.layout import item_bytes
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.placement import find_place
from r1hpc.checkpoint.scratch import Scratch
from r1hpc.checkpoint.torch_dist import TorchDist
from r1hpc.checkpoint.workers import Advance, Work
from r1hpc.errors import CheckpointError

_BATCH_BYTES = 256 << 20


@dataclass(frozen=True)
class Batch:
    """Neighbours in the source: what one worker compares in one go."""

    names: tuple[TensorName, ...]

    def __str__(self) -> str:
        return f"{self.names[0].hf} to {self.names[-1].hf}"


class ValueCheck:
    """Compares batches; each process that calls it reads through buffers and files of its own."""

    def __init__(self, checkpoint: TorchDist, source: HfCheckpoint, recorded: Mapping[str, str]) -> None:
        """recorded: hash of each tensor of this very source when it was converted; {} where that is not known."""
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

    def _compare(self, name: TensorName, advance: Advance) -> str | None:
        checkpoint, source = self._chunks.checkpoint, self._bands.checkpoint
        place = find_place(name, source.shape.num_layers, checkpoint.tensors.keys())
        assert place is not None, f"{name.hf} is not among those stored"
        stored = checkpoint.tensors[place.key]
        differences = Differences()
        for row, values in self._bands.bands(name.hf):
            box = place.rows(row, len(values), len(name.shape))
            held = self._chunks.read_box(place.key, box, self._scratch.tensor(box.sizes, stored.dtype))
            differences.add(box.offset, held, values.to(stored.dtype).view(box.sizes))
            advance(values.nbytes)
        origin = f"{name.hf} of {source.entries[name.hf].file}"
        if not differences.count:
            return f"{origin}: {changed}" if (changed := self._changed(name)) else None
        file = next(checkpoint.directory / chunk.extent.file for chunk, _ in stored.meeting(place.box))
        changed = self._changed(name)
        return (
            f"{file}: {place.key} {place.box} differs from {origin} in {differences.count:,} of "
            f"{place.box.volume:,} elements, first at {differences.first}" + (f"; {changed}" if changed else "")
        )

    def _changed(self, name: TensorName) -> str:
        """Whether the source is another now than the one on record, in words; empty if it is not."""
        for part in (name.hf, name.hf + SCALE_SUFFIX):
            read, noted = self._bands.hashes.get(part), self._recorded.get(part)
            if read is not None and noted is not None and read != noted:
                return f"the source has changed since the conversion ({part} has xxh3 {read}, on record is {noted})"
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
