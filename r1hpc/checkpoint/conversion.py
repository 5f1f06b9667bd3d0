"""What one conversion is: its source, its target, the files of the result, and where the work in progress lies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint
from r1hpc.checkpoint.layout import Slices, cut_into_files, cut_into_slices, size_bytes
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.staged_work import StagedWork
from r1hpc.errors import CheckpointError
from r1hpc.plan.layers import split_layers

FORMAT = 1
RELEASE = "release"
TRACKER = "latest_checkpointed_iteration.txt"
"""Names the checkpoint of a directory that Megatron loads: --ref-load reads it."""
SOURCE = "source.json"
"""Where a release came from: path, identity, configuration, and the hash of every source tensor."""


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
class Conversion(StagedWork[ConvertFile]):
    """A conversion of one Hugging Face checkpoint into one directory; the same for every task of it."""

    source: HfCheckpoint
    root: Path
    """What --ref-load names."""
    pieces: int
    """Chunks of a tensor along the axis that tensor parallelism splits."""
    slices: int
    files: tuple[ConvertFile, ...]
    digest: str
    """Of the source, of how it is cut, and of the versions that the bytes depend on."""
    what = "convert"
    setting = "ckpt.ref_load"

    @property
    def release(self) -> Path:
        """The checkpoint, once published."""
        return self.root / RELEASE

    @property
    def final(self) -> Path:
        """The checkpoint, once published."""
        return self.release

    @property
    def stagings(self) -> Path:
        """In the directory that the checkpoint will lie in."""
        return self.root / ".convert"

    @property
    def identity(self) -> str:
        """`digest`."""
        return self.digest

    def identity_found(self) -> object:
        """That of the conversion on record."""
        return read_record(self.release / SOURCE).get("conversion")

    def why_another(self) -> str:
        """Whether the source is another, or only the way it was cut."""
        if read_record(self.release / SOURCE).get("identity") != self.source.identity:
            return super().why_another()
        return (
            "was made from this very source, cut in another way (convert.*) or by another version of torch; any "
            "parallel size loads it: keep it, or remove it to convert anew"
        )

    def files_of_task(self, index: int, num_tasks: int) -> tuple[ConvertFile, ...]:
        """Neighbouring slices: tasks read neighbouring source files."""
        first, last = (self.slices * number // num_tasks for number in (index, index + 1))
        return tuple(file for file in self.files if first <= file.slice < last)


def make_slices(
    num_layers: int, pipeline: int, first: int | None, last: int | None, expert: int, balance: str
) -> Slices:
    """The slices that a configuration asks for. balance: layout (pipeline x expert) or bytes.

    Raises CheckpointError when the layers cannot be split like that.
    """
    try:
        layers = split_layers(num_layers, pipeline, first, last)
    except ValueError as error:
        raise CheckpointError(
            f"convert: {error} (convert.decoder_first_pipeline_num_layers, decoder_last_pipeline_num_layers)"
        ) from error
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
    digest = xxhash.xxh3_128_hexdigest(text.encode())
    return Conversion(source, Path(os.path.realpath(root)), pieces, slices.count, tuple(files), digest)
