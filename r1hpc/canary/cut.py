"""The first layers of a Hugging Face checkpoint as a checkpoint of its own: the same bytes, a smaller config.json."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.canary.layers import LayerCut
from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.companions import copy_companions, publish_config, publish_index
from r1hpc.checkpoint.hf_checkpoint import (
    FP8,
    MANIFEST,
    SCALE_SUFFIX,
    HfCheckpoint,
    open_checkpoint,
    read_manifest,
)
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.checkpoint.recorded_hashes import recorded_hashes, require_recorded
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES, TensorEntry
from r1hpc.checkpoint.shard_writer import writing_shard
from r1hpc.checkpoint.staged_work import Records, StagedWork, Steps, run_task
from r1hpc.checkpoint.workers import Advance
from r1hpc.publish import publish_json

FORMAT = 1


@dataclass(frozen=True)
class CutFile:
    """One file to be written: what is kept of one file of the source."""

    name: str
    kept: tuple[tuple[str, TensorEntry], ...]
    """(name in the cut, entry of the source), wide dtypes first, else in the order of reading."""

    @property
    def layout(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, dtype and shape of each tensor of the new file."""
        return tuple((name, entry.dtype, entry.shape) for name, entry in self.kept)

    @property
    def size_bytes(self) -> int:
        """Payload."""
        return sum(math.prod(entry.shape) * ITEM_BYTES[entry.dtype] for _, entry in self.kept)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cut(StagedWork[CutFile]):
    """A cut of one source into one directory."""

    source: HfCheckpoint
    target: Path
    layers: LayerCut
    files: tuple[CutFile, ...]
    what = "cut"
    setting = "run.root"

    @property
    def final(self) -> Path:
        """The cut."""
        return self.target

    @property
    def stagings(self) -> Path:
        """Beside the target, which becomes it by a rename."""
        return self.target.parent / f".{self.target.name}.cut"

    @property
    def identity(self) -> str:
        """The source, and the layers that are kept of it."""
        return xxhash.xxh3_128_hexdigest(f"{FORMAT} {self.source.identity} {self.layers}".encode())

    def identity_found(self) -> object:
        """That of the cut on record."""
        return read_manifest(self.target).get("source", {}).get("identity")

    @property
    def config(self) -> dict[str, Any]:
        """The values of the cut's config.json."""
        layers = self.layers
        return dict(self.source.config) | {
            "num_hidden_layers": layers.num_layers,
            "num_nextn_predict_layers": layers.mtp_layers,
        }

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def plan_cut(source: Path, target: Path, layers: LayerCut) -> Cut:
    """Read all headers of the source and lay out every new file. Raises CheckpointError, CheckpointProblems."""
    checkpoint = open_checkpoint(source)
    kept = dict(_kept(checkpoint, layers))
    files = []
    for header in checkpoint.headers:
        names = [(kept[entry.name], entry) for entry in header.tensors if entry.name in kept]
        names.sort(key=lambda pair: -ITEM_BYTES[pair[1].dtype])
        if names:
            files.append(CutFile(header.file.name, tuple(names)))
    return Cut(checkpoint, Path(os.path.realpath(target)), layers, tuple(files))


def write_cut(cut: Cut, num_workers: int, say: Callable[[str], None], every_s: float = 10.0) -> None:
    """Write what is not there yet, and publish. Raises CheckpointError."""
    recorded = recorded_hashes(cut.source)
    steps = Steps[CutFile](
        write=lambda file, advance: _write(cut, file, recorded, advance),
        complete=lambda records: _complete(cut, records),
    )
    run_task(cut, steps, cut.files, num_workers, "its only task", say, every_s)


def _kept(checkpoint: HfCheckpoint, layers: LayerCut) -> Sequence[tuple[str, str]]:
    """(name in the source, name in the cut) of every tensor that is kept, scales included."""
    shape = checkpoint.shape
    sources = layers.sources(shape)
    names = tensors(replace(shape, num_layers=layers.num_layers, num_mtp_layers=layers.mtp_layers))
    pairs = [(_source_name(name, sources), name.hf) for name in names]
    scales = [
        (source + SCALE_SUFFIX, name + SCALE_SUFFIX)
        for source, name in pairs
        if checkpoint.entries[source].dtype == FP8
    ]
    return [*pairs, *scales]


def _source_name(name: TensorName, sources: Mapping[int, int]) -> str:
    if name.layer is None:
        return name.hf
    prefix = f"model.layers.{name.layer}."
    assert name.hf.startswith(prefix), name.hf
    return f"model.layers.{sources[name.layer]}." + name.hf.removeprefix(prefix)


def _write(cut: Cut, file: CutFile, recorded: Mapping[str, str], advance: Advance) -> None:
    path = cut.staged / file.name
    with closing(BandReader(cut.source)) as reader, writing_shard(path, file.layout, cut.temporary) as writer:
        for name, entry in file.kept:
            for _, values in reader.stored_bands(entry.name):
                writer.append(name, values)
                advance(values.nbytes)
        reader.check_unchanged()
        require_recorded(reader, recorded)
    publish_json(cut.part(file), {"size": writer.size_bytes, "tensors": writer.hashes})


def _complete(cut: Cut, records: Records) -> None:
    """Manifest, companions, configuration and index."""
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": record["size"], "tensors": record["tensors"]} for name, record in records.items()},
        "source": {"path": str(cut.source.directory.resolve()), "identity": cut.identity},
    }
    publish_json(cut.staged / MANIFEST, manifest, cut.temporary)
    copy_companions(cut.source.directory, cut.staged, cut.temporary)
    publish_config(cut.config, cut.staged, quantized=True, beside=cut.temporary)
    weight_map = {name: file.name for file in cut.files for name, _ in file.kept}
    publish_index(cut.staged, weight_map, cut.size_bytes, cut.temporary)
