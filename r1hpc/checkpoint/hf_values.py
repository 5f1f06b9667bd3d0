"""The values of a Hugging Face checkpoint: those that it was made from, or at least numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.differences import Differences, in_step
from r1hpc.checkpoint.fp8 import BLOCK, quantize
from r1hpc.checkpoint.hf_checkpoint import FP8, HfCheckpoint
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.values import Batch
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import CheckpointError


class Origin(Protocol):
    """What a checkpoint was made from: `StoredWeights` or `HfWeights`."""

    def where(self, name: TensorName) -> str:
        """File and name of a weight, for people."""
        ...

    def bands(self, name: TensorName) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, values) in bf16 or float32, in whole blocks."""
        ...


class HfWeights:
    """The weights of another Hugging Face checkpoint, dequantized."""

    def __init__(self, checkpoint: HfCheckpoint) -> None:
        self._bands = BandReader(checkpoint)

    def where(self, name: TensorName) -> str:
        """File and name."""
        return f"{self._bands.checkpoint.entries[name.hf].file}: {name.hf}"

    def bands(self, name: TensorName) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, values)."""
        return self._bands.bands(name.hf)


class SameValues:
    """Compares batches of a checkpoint, bit for bit, with what it was made from.

    What an export has in fp8 is the origin quantized. A release, of which the origin is the cast, need not be:
    quantizing that may give other scales. Nor need the prediction layers of an export, which may have been copied.
    """

    def __init__(self, checkpoint: HfCheckpoint, origin: Origin, *, exported: bool) -> None:
        self._checkpoint = checkpoint
        self._exported = exported
        self._bands = BandReader(checkpoint)
        self._origin = origin

    def __call__(self, batch: Batch, advance: Advance) -> list[str]:
        """What differs, each problem naming file, tensor and place."""
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
        entry = self._checkpoint.entries[name.hf]
        if entry.dtype != FP8:
            found = self._by_value(name, advance)
            how = "differs from"
        else:
            found = self._by_code(name, advance)
            how = "is not what quantizing gives of"
            if found.count and self._may_be_another_quantization(name):
                by_value = self._by_value(name, _ignore)
                if by_value.count < found.count:
                    found = by_value
                    how = "dequantized differs from"
        if not found.count:
            return None
        total = torch.Size(name.shape).numel()
        return (
            f"{entry.file}: {name.hf} {how} {self._origin.where(name)} in {found.count:,} of {total:,} elements, "
            f"first at {found.first}"
        )

    def _may_be_another_quantization(self, name: TensorName) -> bool:
        return not self._exported or (name.layer is not None and name.layer >= self._checkpoint.shape.num_layers)

    def _by_value(self, name: TensorName, advance: Advance) -> Differences:
        found = Differences()
        for row, values, expected in in_step(self._bands.bands(name.hf), self._origin.bands(name)):
            found.add(_from_row(row, values), values, expected)
            advance(values.nbytes)
        return found

    def _by_code(self, name: TensorName, advance: Advance) -> Differences:
        """Codes that are not those of the origin quantized, then scales."""
        codes_differ, scales_differ = Differences(), Differences()
        scales = self._bands.scales(name.hf)
        for row, codes, values in in_step(self._bands.stored_bands(name.hf), self._origin.bands(name)):
            expected, expected_scales = quantize(values, name=self._origin.where(name), first_row=row)
            codes_differ.add(_from_row(row, codes), codes, expected)
            block = row // BLOCK
            scales_differ.add((block, 0), scales[block : block + len(expected_scales)], expected_scales)
            advance(values.nbytes)
        if scales_differ.count and not codes_differ.count:
            codes_differ.first = f"the scale of block {scales_differ.first}"
        codes_differ.count += scales_differ.count
        return codes_differ


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


def _from_row(row: int, values: torch.Tensor) -> tuple[int, ...]:
    return (row, *(0 for _ in values.shape[1:]))


def _ignore(size_bytes: int) -> None:
    """Bytes that are read a second time are no progress."""
