"""Verifying a Hugging Face checkpoint: its headers, the hashes that its writer left, its values against its source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, HfCheckpoint
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.safetensors_file import TensorEntry
from r1hpc.checkpoint.values import Batch
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import CheckpointError


@dataclass(frozen=True)
class HashedFile:
    """A safetensors file, and the hash that each of its tensors had when it was written."""

    file: Path
    tensors: tuple[tuple[TensorEntry, str], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes to read."""
        return sum(entry.size_bytes for entry, _ in self.tensors)

    def __str__(self) -> str:
        return self.file.name


def index_problems(checkpoint: HfCheckpoint) -> Iterator[str]:
    """A total size that is not that of the tensors; a quantization that config.json and the files disagree on."""
    file = checkpoint.directory / INDEX
    if file.exists():
        total = json.loads(file.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        actual = sum(entry.size_bytes for entry in checkpoint.entries.values())
        if total != actual:
            yield f"{file}: total_size is {total}; the tensors have {actual:,} bytes"
    if ("quantization_config" in checkpoint.config) != checkpoint.has_fp8:
        says = "names" if "quantization_config" in checkpoint.config else "does not name"
        stored = "fp8" if checkpoint.has_fp8 else "bf16"
        yield f"{checkpoint.directory / CONFIG}: {says} a quantization_config, the weights are {stored}"


def hashed_files(checkpoint: HfCheckpoint, manifest: Mapping[str, Any]) -> tuple[list[HashedFile], list[str]]:
    """The files with the hashes of their manifest; and what manifest and files do not agree on."""
    recorded: Mapping[str, Any] = manifest["files"]
    problems: list[str] = []
    files = []
    for header in checkpoint.headers:
        record = recorded.get(header.file.name)
        if record is None:
            problems.append(f"{header.file}: is not in the manifest")
            continue
        if header.size_bytes != record["size"]:
            problems.append(f"{header.file}: has {header.size_bytes:,} bytes, the manifest says {record['size']:,}")
        hashes: Mapping[str, str] = record["tensors"]
        for name in sorted({entry.name for entry in header.tensors} ^ hashes.keys()):
            where = "not in the manifest" if name not in hashes else "in the manifest, but not in the file"
            problems.append(f"{header.file}: {name} is {where}")
        pairs = tuple((entry, hashes[entry.name]) for entry in header.tensors if entry.name in hashes)
        files.append(HashedFile(header.file, pairs))
    missing = recorded.keys() - {header.file.name for header in checkpoint.headers}
    problems += [f"{checkpoint.directory / name}: is in the manifest, but no tensor lies in it" for name in missing]
    return files, problems


def check_hashes(file: HashedFile, advance: Advance) -> list[str]:
    """The tensors of one file whose bytes are not those that were written."""
    stored = [
        StoredChunk(entry.name, Chunk((0,) * len(entry.shape), entry.shape), entry.begin, entry.size_bytes, xxh3)
        for entry, xxh3 in file.tensors
    ]
    return recheck_file(file.file, stored, advance)


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
