"""What an export writes: which weight goes to which file, and where each comes from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from r1hpc.checkpoint.export_target import STAGING, claim_target
from r1hpc.checkpoint.fp8 import scale_shape
from r1hpc.checkpoint.hf_checkpoint import FP8, MANIFEST, SCALE_SUFFIX, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.placement import Place, find_place
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES
from r1hpc.checkpoint.structure import VOCABULARY
from r1hpc.checkpoint.torch_dist import METADATA, TorchDist, open_torch_dist
from r1hpc.errors import CheckpointError, CheckpointProblems

_STORED_DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class ExportFile:
    """One file to be written."""

    name: str
    names: tuple[TensorName, ...]
    layout: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, dtype and shape of each tensor, scales among them, in the order of the file."""

    @property
    def size_bytes(self) -> int:
        """Payload."""
        return sum(math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in self.layout)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Export:
    """An export of one torch_dist checkpoint into one directory."""

    checkpoint: TorchDist
    like: HfCheckpoint
    """Gives the model's configuration, the files beside the weights, and which weight lies in which file."""
    target: Path
    fp8: bool
    files: tuple[ExportFile, ...]
    identity: str
    """Digest of the checkpoint, its files and their times, of what it is laid out like, and of the format."""

    @property
    def parts(self) -> Path:
        """Directory of the records of the files that are done; another export has another one."""
        return self.target / STAGING / self.identity

    def part(self, file: ExportFile) -> Path:
        """The record of one file."""
        return self.parts / f"{file.name}.json"

    def place(self, name: TensorName) -> Place | None:
        """Where the checkpoint holds a weight; null for one that it lacks, which `like` gives."""
        return find_place(name, self.like.shape.num_layers, self.checkpoint.tensors.keys())

    @property
    def from_like(self) -> tuple[TensorName, ...]:
        """The weights that the checkpoint lacks: prediction layers, which training does not load."""
        return tuple(name for file in self.files for name in file.names if self.place(name) is None)


def plan_export(path: Path, like: Path, target: Path, *, fp8: bool) -> Export:
    """Lay out every file of the export of the torch_dist checkpoint in `path`.

    Raises CheckpointError or CheckpointProblems when `target` is taken, when `like` is no complete checkpoint, or when
    the torch_dist checkpoint is of another model.
    """
    checkpoint = open_torch_dist(path)
    claim_target(target, (checkpoint.directory, like))
    model = open_checkpoint(like)
    problems = list(_problems(checkpoint, model))
    if problems:
        raise CheckpointProblems(problems[:20] + ([f"and {len(problems) - 20} more"] if len(problems) > 20 else []))
    by_name = {name.hf: name for name in model.names}
    files = []
    for header in model.headers:
        names = tuple(by_name[entry.name] for entry in header.tensors if entry.name in by_name)
        if names:
            files.append(ExportFile(header.file.name, names, _layout(names, fp8)))
    return Export(checkpoint, model, target, fp8, tuple(files), _identity(checkpoint, model, fp8))


def is_quantized(name: TensorName, fp8: bool) -> bool:
    """Whether a weight is stored in fp8 by an export of this format."""
    return fp8 and name.quantized


def _identity(checkpoint: TorchDist, model: HfCheckpoint, fp8: bool) -> str:
    """Two trainings of one model have the same `.metadata`: it says where the weights lie, not what they are."""
    digest = xxhash.xxh3_128(f"{model.identity} {fp8}".encode())
    try:
        for name in (METADATA, MANIFEST):
            if os.path.exists(checkpoint.directory / name):
                digest.update((checkpoint.directory / name).read_bytes())
        for name in sorted({extent.file for extent in checkpoint.extents()}):
            status = (checkpoint.directory / name).stat()
            digest.update(f"{name} {status.st_size} {int(status.st_mtime)}\n".encode())
    except OSError as error:
        raise CheckpointError(
            f"{checkpoint.directory}: cannot be read ({error}); verify names every bad file"
        ) from error
    return digest.hexdigest()


def _problems(checkpoint: TorchDist, model: HfCheckpoint) -> Iterator[str]:
    for name in model.names:
        place = find_place(name, model.shape.num_layers, checkpoint.tensors.keys())
        if place is None:
            if not name.key.startswith("mtp."):
                yield f"{checkpoint.directory}: has no {name.key}, which {name.hf} is made from"
            continue
        stored = checkpoint.tensors[place.key]
        # Training may have padded the vocabulary; the rows of the model come first.
        padded = place.key in VOCABULARY and stored.shape[1:] == place.shape[1:] and stored.shape[0] > place.shape[0]
        if stored.shape != place.shape and not padded:
            yield (
                f"{checkpoint.directory}: {place.key} has shape {list(stored.shape)}, {model.directory}/config.json "
                f"asks for {list(place.shape)}"
            )
        elif stored.dtype not in _STORED_DTYPES:
            yield f"{checkpoint.directory}: {place.key} is {stored.dtype}; bfloat16 and float32 can be exported"


def _layout(names: tuple[TensorName, ...], fp8: bool) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    rows: list[tuple[str, str, tuple[int, ...]]] = []
    for name in names:
        if is_quantized(name, fp8):
            rows.append((name.hf, FP8, name.shape))
            rows.append((name.hf + SCALE_SUFFIX, "F32", scale_shape(name.shape)))
        else:
            rows.append((name.hf, "F32" if name.float32 else "BF16", name.shape))
    # Wide ones first, or the payloads after an odd one would not be aligned.
    rows.sort(key=lambda row: -ITEM_BYTES[row[1]])
    return tuple(rows)
