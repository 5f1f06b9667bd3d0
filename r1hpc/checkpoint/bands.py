"""Reading a tensor of a Hugging Face checkpoint a few MB at a time, dequantized on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
import xxhash

from r1hpc.checkpoint.fp8 import BLOCK, Dequantizer
from r1hpc.checkpoint.hf_checkpoint import FP8, SCALE_SUFFIX, HfCheckpoint
from r1hpc.checkpoint.safetensors_file import TensorEntry
from r1hpc.errors import CheckpointError

BAND_BYTES = 1 << 20
"""A band of this size stays in the cache between being read, hashed, rounded and written."""
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, FP8: torch.float8_e4m3fn}
_MAX_OPEN = 32


class BandReader:
    """Reads one checkpoint through buffers that it keeps: a fresh one each band would cost a page fault every 4 kB."""

    def __init__(self, checkpoint: HfCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.hashes: dict[str, str] = {}
        """xxh3_64 of the bytes of every tensor that was read to its end, as they are stored."""
        self._headers = {header.file: header for header in checkpoint.headers}
        self._files: dict[Path, int] = {}
        self._source = torch.empty(0, dtype=torch.uint8)
        self._target = torch.empty(0, dtype=torch.bfloat16)
        self._scratch = numpy.empty(0, dtype=numpy.uint16)
        self._dequantize = Dequantizer()

    def bands(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, values [rows, ...]) of a tensor: bf16, or float32 where it is stored so.

        A band is valid until the next one is asked for. Raises CheckpointError naming file and tensor where a value is
        not finite, or where a read fails.
        """
        entry = self.checkpoint.entries[name]
        scales = self.scales(name) if entry.dtype == FP8 else None
        for row, values in self.stored_bands(name):
            if scales is not None:
                yield row, self._dequantized(entry, row, values, scales)
            else:
                self._check_finite(entry, row, values)
                yield row, values

    def scales(self, name: str) -> torch.Tensor:
        """All scales of a tensor in fp8, as they are stored."""
        return self._whole(self.checkpoint.entries[name + SCALE_SUFFIX])

    def stored_bands(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, values [rows, ...]) of a tensor in the dtype of the file: fp8 codes and scales as they are."""
        entry = self.checkpoint.entries[name]
        digest = xxhash.xxh3_64()
        row_bytes = entry.size_bytes // entry.shape[0]
        step = _band_rows(row_bytes)
        for row in range(0, entry.shape[0], step):
            rows = min(step, entry.shape[0] - row)
            raw = self._read(entry, row * row_bytes, rows * row_bytes)
            digest.update(raw.numpy().data)
            yield row, raw.view(_DTYPES[entry.dtype]).view(rows, *entry.shape[1:])
        self.hashes[name] = digest.hexdigest()

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a file that was read has been written to since its header was."""
        for file, descriptor in self._files.items():
            self._check_unchanged(file, descriptor)

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _dequantized(self, entry: TensorEntry, row: int, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        rows, columns = values.shape
        if self._target.numel() < values.numel():
            self._target = torch.empty(values.numel(), dtype=torch.bfloat16)
        out = self._target[: values.numel()].view(rows, columns)
        block_rows = scales[row // BLOCK : -(-(row + rows) // BLOCK)]
        return self._dequantize(values, block_rows, name=f"{entry.file}: {entry.name}", out=out, first_row=row)

    def _check_finite(self, entry: TensorEntry, row: int, values: torch.Tensor) -> None:
        if values.dtype == torch.bfloat16:
            # Shifted left the sign is gone, and what is not finite has all 8 bits of the exponent set.
            bits = values.view(torch.int16).numpy().reshape(-1).view(numpy.uint16)
            if self._scratch.size < bits.size:
                self._scratch = numpy.empty(bits.size, dtype=numpy.uint16)
            shifted = numpy.left_shift(bits, 1, out=self._scratch[: bits.size])
            if shifted.max() < 0xFF00:
                return
        bad = (~values.isfinite()).nonzero()
        if len(bad):
            at = [row + int(bad[0][0]), *map(int, bad[0][1:])]
            raise CheckpointError(f"{entry.file}: {entry.name} is {values[tuple(bad[0])]} at {at}; it must be finite")

    def _whole(self, entry: TensorEntry) -> torch.Tensor:
        raw = self._read(entry, 0, entry.size_bytes).clone()
        digest = xxhash.xxh3_64_hexdigest(raw.numpy().data)
        self.hashes[entry.name] = digest
        return raw.view(_DTYPES[entry.dtype]).view(entry.shape)

    def _read(self, entry: TensorEntry, begin: int, count: int) -> torch.Tensor:
        if self._source.numel() < count:
            self._source = torch.empty(count, dtype=torch.uint8)
        buffer = self._source[:count]
        left, position = buffer.numpy().data, entry.begin + begin
        try:
            descriptor = self._open(entry.file)
            while left:
                got = os.preadv(descriptor, [left], position)
                if got == 0:
                    raise CheckpointError(
                        f"{entry.file}: ends within {entry.name}; it was cut short after it was opened"
                    )
                left, position = left[got:], position + got
        except OSError as error:
            raise CheckpointError(f"{entry.file}: {entry.name} cannot be read ({error.strerror})") from error
        return buffer

    def _open(self, file: Path) -> int:
        if file not in self._files:
            if len(self._files) == _MAX_OPEN:
                self.check_unchanged()
                os.close(self._files.pop(next(iter(self._files))))
            self._files[file] = os.open(file, os.O_RDONLY)
            self._check_unchanged(file, self._files[file])
        return self._files[file]

    def _check_unchanged(self, file: Path, descriptor: int) -> None:
        """Another file under this name has other offsets, and the result would be a mixture."""
        status, header = os.fstat(descriptor), self._headers[file]
        if (status.st_size, int(status.st_mtime)) != (header.size_bytes, header.modified_s):
            raise CheckpointError(
                f"{file}: has been written to since this task began (it had {header.size_bytes} bytes, now "
                f"{status.st_size}); once it is complete run the task again"
            )


def _band_rows(row_bytes: int) -> int:
    """Whole blocks of rows, so that a band's scales are whole rows too."""
    return max(BLOCK, BAND_BYTES // row_bytes // BLOCK * BLOCK)
