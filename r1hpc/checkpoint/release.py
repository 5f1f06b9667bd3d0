"""What makes the files of a conversion a checkpoint: all of them looked at once more, then the metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xxhash

from r1hpc.checkpoint.conversion import SOURCE, Conversion, ConvertFile
from r1hpc.checkpoint.dcp_metadata import COMMON, OBJECTS, metadata_json, objects_file, pickled_metadata, saved
from r1hpc.checkpoint.distcp import StoredChunk, from_json
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.layout import chunks
from r1hpc.checkpoint.names import TensorName, extra_state_keys
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.staged_work import Records
from r1hpc.checkpoint.torch_dist import METADATA
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointProblems
from r1hpc.publish import publishing

FORMAT = 1


def complete_release(conversion: Conversion, records: Records) -> None:
    """Compare the parts with the plan and write every file that holds no chunks; the same bytes whoever does it.

    Raises CheckpointProblems naming what is not as planned. A part that is to blame is removed: its file will be
    written again when its task is run again.
    """
    sources = {name: value for record in records.values() for name, value in record["sources"].items()}
    problems = [p for file in conversion.files for p in _chunk_problems(conversion, file, records[file.name])]
    problems += [
        p for name in conversion.source.names if name.copy_of for p in _copy_problems(conversion, name, sources)
    ]
    if problems:
        raise CheckpointProblems(problems)
    _write_metadata(conversion, records, sources)


def _copy_problems(conversion: Conversion, name: TensorName, sources: Mapping[str, str]) -> list[str]:
    if sources.get(name.hf) == sources.get(name.copy_of or ""):
        return []
    for file in conversion.files:
        if any(part.hf in (name.hf, name.copy_of) for part in file.names):
            conversion.part(file).unlink(missing_ok=True)
    return [
        f"{conversion.source.entries[name.hf].file}: {name.hf} is not the copy of {name.copy_of} that it is in "
        "DeepSeek's releases; torch_dist has one tensor for both, so one of them would be lost"
    ]


def _chunk_problems(conversion: Conversion, file: ConvertFile, part: Mapping[str, Any]) -> list[str]:
    stored = [name for name in file.names if not name.copy_of]
    planned = {(name.key, c.offsets, c.sizes) for name in stored for c in chunks(name, conversion.pieces)}
    written = {(s.key, s.chunk.offsets, s.chunk.sizes) for s in map(from_json, part["chunks"])}
    return [
        f"{conversion.part(file)}: {what} {key} at {list(offsets)} of {list(sizes)}; remove it and run its task again"
        for what, boxes in (("lacks", planned - written), ("has a surplus", written - planned))
        for key, offsets, sizes in sorted(boxes)
    ]


def recheck_files(
    conversion: Conversion, records: Records, num_workers: int, say: Callable[[str], None], every_s: float
) -> None:
    """Read every file again: a flipped bit loads without a word. A file that is wrong is written anew next time."""

    def check(file: ConvertFile, advance: Advance) -> list[str]:
        stored = [from_json(value) for value in records[file.name]["chunks"]]
        return recheck_file(conversion.staged / file.name, stored, advance)

    progress = Progress("reading it again", sum(record["size"] for record in records.values()), say, every_s)
    found = run_units(conversion.files, check, num_workers, progress).results
    for file, problems in zip(conversion.files, found, strict=True):
        if problems:
            conversion.part(file).unlink(missing_ok=True)
    if any(found):
        wrong = [problem for problems in found for problem in problems]
        raise CheckpointProblems([*wrong, "these files will be written again when their tasks are run again"])


def _write_metadata(conversion: Conversion, records: Records, sources: Mapping[str, str]) -> None:
    stored: dict[str, list[tuple[str, StoredChunk]]] = {}
    for file in conversion.files:
        for value in records[file.name]["chunks"]:
            chunk = from_json(value)
            stored.setdefault(chunk.key, []).append((file.name, chunk))
    for located in stored.values():
        located.sort(key=lambda pair: pair[1].chunk.offsets)
    source = conversion.source
    small = {
        OBJECTS: objects_file(),
        # Megatron before 0.19 asks for it; since then the object above is enough.
        "common.pt": saved(COMMON),
        "metadata.json": metadata_json().encode(),
        METADATA: pickled_metadata(source.names, stored, extra_state_keys(source.shape)),
    }
    files = {file.name: {"size": records[file.name]["size"], "xxh3": None} for file in conversion.files}
    files |= {name: {"size": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)} for name, data in small.items()}
    small[MANIFEST] = _json({"format": FORMAT, "files": files, "chunks": _located(stored)})
    small[SOURCE] = _json(
        {
            "path": str(source.directory.resolve()),
            "identity": source.identity,
            "conversion": conversion.identity,
            "config": source.config,
            "tensors": sources,
        }
    )
    for name, data in small.items():
        with publishing(conversion.staged / name, conversion.temporary) as stream:
            stream.write(data)


def _located(stored: Mapping[str, Sequence[tuple[str, StoredChunk]]]) -> dict[str, list[list[object]]]:
    """[[offsets, sizes, file, offset, length, xxh3], ...] of each key."""
    return {
        key: [[c.chunk.offsets, c.chunk.sizes, file, c.offset, c.length, c.xxh3] for file, c in located]
        for key, located in stored.items()
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n").encode()
