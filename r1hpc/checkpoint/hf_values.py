"""The values of a Hugging Face checkpoint: equal to those of another, or at least numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import xxhash

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint
from r1hpc.checkpoint.values import Batch
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import CheckpointError


class SameValues:
    """Compares batches of two Hugging Face checkpoints by the values that they stand for, fp8 dequantized."""

    def __init__(self, checkpoint: HfCheckpoint, source: HfCheckpoint) -> None:
        self._target = BandReader(checkpoint)
        self._source = BandReader(source)

    def __call__(self, batch: Batch, advance: Advance) -> list[str]:
        """What differs, each problem naming file and tensor."""
        found = []
        for name in batch.names:
            try:
                # The bands of fp8 and bf16 are of different heights: 64-bit hashes of the whole are compared.
                differs = _digest(self._target, name.hf, advance) != _digest(self._source, name.hf, _ignore)
            except CheckpointError as error:
                found.append(str(error))
                continue
            if differs:
                target, source = (reader.checkpoint.entries[name.hf].file for reader in (self._target, self._source))
                found.append(f"{target}: {name.hf} has other values than in {source}")
        return found


class FiniteValues:
    """Reads batches of a checkpoint that nothing can be compared with: every value must be a finite number."""

    def __init__(self, checkpoint: HfCheckpoint) -> None:
        self._bands = BandReader(checkpoint)

    def __call__(self, batch: Batch, advance: Advance) -> list[str]:
        """What is not finite or cannot be read."""
        return [problem for name in batch.names if (problem := self._read(name.hf, advance))]

    def _read(self, name: str, advance: Advance) -> str | None:
        try:
            for _, values in self._bands.bands(name):
                advance(values.nbytes)
        except CheckpointError as error:
            return str(error)
        return None


def _digest(reader: BandReader, name: str, advance: Callable[[int], None]) -> str:
    digest = xxhash.xxh3_64()
    for _, values in reader.bands(name):
        digest.update(values.contiguous().view(-1).view(torch.uint8).numpy().data)
        advance(values.nbytes)
    return digest.hexdigest()


def _ignore(size_bytes: int) -> None:
    """Bytes of the source are no progress of the target."""
