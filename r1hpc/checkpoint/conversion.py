"""What one conversion is: its source, its target, the files of the result, and where the work in progress lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint, read_manifest
from r1hpc.checkpoint.layout import Slices, cut_into_files, cut_into_slices, size_bytes
from r1hpc.checkpoint.names import TensorName
from r1hpc.errors import CheckpointError
from r1hpc.plan.layers import split_layers

FORMAT = 1
RELEASE = "release"
TRACKER = "latest_checkpointed_iteration.txt"
"""Names the checkpoint of a directory that Megatron loads: --ref-load reads it."""
_STAGING = ".convert"


@dataclass(frozen=True)
class ConvertFile:
    """One .distcp file to be written."""

    name: str
    slice: int
    names: tuple[TensorName, ...]

    @property
    def size_bytes(self) -> int:
        """Payload."""
        return sum(size_bytes(name) for name in self.names)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Conversion:
    """A conversion of one Hugging Face checkpoint into one directory; the same for every task of it."""

    source: HfCheckpoint
    root: Path
    """What --ref-load names."""
    pieces: int
    """Chunks of a tensor along the axis that tensor parallelism splits."""
    slices: int
    files: tuple[ConvertFile, ...]
    identity: str
    """Digest of the source, of how it is cut, and of the versions that the bytes depend on."""

    @property
    def release(self) -> Path:
        """The checkpoint, once published."""
        return self.root / RELEASE

    @property
    def stagings(self) -> Path:
        """Directory of all work in progress in `root`."""
        return self.root / _STAGING

    @property
    def staging(self) -> Path:
        """Everything of this conversion before that; another conversion into `root` has another one."""
        return self.stagings / self.identity

    @property
    def staged(self) -> Path:
        """What becomes `release` by one rename: complete files only."""
        return self.staging / RELEASE

    @property
    def temporary(self) -> Path:
        """Files being written: outside `staged`, so that a late writer leaves nothing in the checkpoint."""
        return self.staging / "temporary"

    def part(self, file: ConvertFile) -> Path:
        """The record of one file that is done."""
        return self.staging / "parts" / f"{file.name}.json"

    def files_of_task(self, index: int, num_tasks: int) -> tuple[ConvertFile, ...]:
        """Neighbouring slices: tasks read neighbouring source files."""
        first, last = (self.slices * number // num_tasks for number in (index, index + 1))
        return tuple(file for file in self.files if first <= file.slice < last)


def make_slices(
    num_layers: int, pipeline: int, first: int | None, last: int | None, expert: int, balance: str
) -> Slices:
    """The slices that a configuration asks for. balance: layout (pipeline x expert) or bytes."""
    layers = split_layers(num_layers, pipeline, first, last)
    return Slices(tuple(layers), expert, by_bytes=balance == "bytes")


def plan_conversion(source: HfCheckpoint, root: Path, slices: Slices, pieces: int) -> Conversion:
    """Lay out every file of the result.

    Raises CheckpointError when the expert slices do not divide the experts.
    """
    if source.shape.num_experts % slices.expert:
        raise CheckpointError(
            f"convert.expert_model_parallel_size = {slices.expert} does not divide the model's "
            f"{source.shape.num_experts} experts"
        )
    files = []
    for number, names in enumerate(cut_into_slices(source.names, slices)):
        for count, part in enumerate(cut_into_files(names)):
            files.append(ConvertFile(f"__{number}_{count}.distcp", number, tuple(part)))
    version = torch.__version__.partition("+")[0]
    text = f"{FORMAT} {version} {source.identity} {slices} {pieces}"
    identity = xxhash.xxh3_128_hexdigest(text.encode())
    return Conversion(source, root, pieces, slices.count, tuple(files), identity)


def source_hashes(source: HfCheckpoint) -> dict[str, str]:
    """xxh3_64 of every tensor as the cast wrote it; {} for a checkpoint that was not cast by us."""
    files = read_manifest(source.directory).get("files", {})
    return {name: value for record in files.values() for name, value in record["tensors"].items()}
