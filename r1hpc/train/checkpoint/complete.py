"""What makes the files of all ranks a checkpoint: the metadata, then one rename. Done by rank 0."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from r1hpc.checkpoint.dcp_metadata import (
    OBJECTS,
    WrittenTensor,
    common_state,
    metadata_json,
    objects_file,
    pickled_metadata_of,
    saved,
)
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.torch_dist import METADATA
from r1hpc.publish import fsync_directory
from r1hpc.train.checkpoint.box_files import WrittenFile
from r1hpc.train.checkpoint.plan import SavePlan
from r1hpc.train.checkpoint.random_states import RandomStates
from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
from r1hpc.train.checkpoint.trainer_state import RANDOM_STATES, TRAINER, TrainerState, to_json

_MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class RankRecord:
    """What one rank wrote, and its random states."""

    files: tuple[WrittenFile, ...]
    states: RandomStates
    seconds: float
    """That it wrote."""


def complete(
    staging: Path, directory: Path, plan: SavePlan, ranks: Sequence[RankRecord], state: TrainerState
) -> SavedCheckpoint:
    """Write what holds no tensors and publish: `directory` is there as a whole or not at all."""
    began = time.monotonic()
    located = _located(ranks)
    common = common_state(state.iteration)
    small = {
        OBJECTS: objects_file(common),
        # Megatron before 0.19 asks for it; since then the object above is enough.
        "common.pt": saved(common),
        "metadata.json": metadata_json().encode(),
        RANDOM_STATES: saved([record.states for record in ranks]),
        TRAINER: _json(to_json(state)),
        METADATA: _metadata(plan, located, common, state),
    }
    data_files = [file for record in ranks for file in record.files]
    files: dict[str, dict[str, object]] = {file.name: {"size": file.size_bytes, "xxh3": None} for file in data_files}
    files |= {name: {"size": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)} for name, data in small.items()}
    manifest = _json({"format": _MANIFEST_FORMAT, "files": files, "chunks": _rows(located)})
    for name, data in (small | {MANIFEST: manifest}).items():
        _write(staging / name, data)
    fsync_directory(staging)
    os.rename(staging, directory)
    fsync_directory(directory.parent)
    size = sum(file.size_bytes for file in data_files) + sum(map(len, small.values())) + len(manifest)
    seconds = max(record.seconds for record in ranks) + time.monotonic() - began
    return SavedCheckpoint(directory, state, size, xxhash.xxh3_64_hexdigest(manifest), seconds)


_Located = Mapping[str, Sequence[tuple[str, StoredChunk]]]
"""(file, chunk) of each key, in the order of their offsets."""


def _located(ranks: Sequence[RankRecord]) -> _Located:
    found: dict[str, list[tuple[str, StoredChunk]]] = {}
    for record in ranks:
        for file in record.files:
            for stored in file.chunks:
                found.setdefault(stored.key, []).append((file.name, stored))
    return {key: sorted(chunks, key=lambda pair: pair[1].chunk.offsets) for key, chunks in sorted(found.items())}


def _metadata(plan: SavePlan, located: _Located, common: Mapping[str, object], state: TrainerState) -> bytes:
    missing = plan.tensors.keys() ^ located.keys()
    assert not missing, f"planned or written, but not both: {sorted(missing)[:3]}"
    tensors = {key: WrittenTensor(form.dtype, form.shape, located[key]) for key, form in sorted(plan.tensors.items())}
    return pickled_metadata_of(tensors, plan.extra_states, common, f"iteration {state.iteration}")


def _rows(located: _Located) -> dict[str, list[list[object]]]:
    """[[offsets, sizes, file, offset, length, xxh3], ...] of each key."""
    return {
        key: [[c.chunk.offsets, c.chunk.sizes, file, c.offset, c.length, c.xxh3] for file, c in chunks]
        for key, chunks in located.items()
    }


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _json(value: object) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()
