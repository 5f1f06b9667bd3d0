"""Publishing a conversion: the parts compared with the plan, the files with their hashes, then one rename.

Whoever finishes last publishes, and it may be two at once, or one that is killed on any line of this: all write the
same bytes, the checkpoint appears whole by a rename, and the tracker that Megatron reads comes after it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.checkpoint.conversion import RELEASE, TRACKER, Conversion, ConvertFile
from r1hpc.checkpoint.dcp_metadata import COMMON, OBJECTS, metadata_json, objects_file, pickled_metadata, saved
from r1hpc.checkpoint.distcp import StoredChunk, from_json
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.layout import chunks
from r1hpc.checkpoint.names import extra_state_keys
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.torch_dist import METADATA
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.publish import fsync_directory, publish_text, publishing, remove_stale

SOURCE = "source.json"
"""Where a release came from: path, identity, configuration, and the hash of every source tensor."""
FORMAT = 1
Parts = Mapping[str, Mapping[str, Any]]
"""The record of each file, by its name."""


def claim_root(conversion: Conversion) -> None:
    """Raise CheckpointError when the directory holds anything that this conversion is not."""
    tracker = conversion.root / TRACKER
    if tracker.exists() and tracker.read_text(encoding="utf-8").strip() != RELEASE:
        raise CheckpointError(
            f"{conversion.root}: holds the commits of a training run ({TRACKER} does not say {RELEASE}); "
            "set ckpt.ref_load to another directory"
        )
    if conversion.release.exists() and not _is_ours(conversion):
        raise CheckpointError(
            f"{conversion.release}: holds a checkpoint that was not converted from {conversion.source.directory} as it "
            "is now and with these slices; set ckpt.ref_load to another directory, or remove it"
        )


def is_published(conversion: Conversion) -> bool:
    """Whether the checkpoint is in place; its tracker may still be missing."""
    return conversion.release.exists() and _is_ours(conversion)


def publish_if_complete(
    conversion: Conversion, num_workers: int, say: Callable[[str], None], *, recheck: bool = True, every_s: float = 10.0
) -> bool:
    """Publish when every file is there and right; returns whether the checkpoint is complete now.

    Raises CheckpointProblems naming every file that is not what its record says.
    """
    if not is_published(conversion):
        parts = {file.name: read_record(conversion.part(file)) for file in conversion.files}
        if not all(parts.values()):
            # Another task may have published, and removed the parts, since we looked.
            return is_published(conversion) and _finish(conversion)
        try:
            _check(conversion, parts)
            if recheck:
                _recheck(conversion, parts, num_workers, say, every_s)
            _write_metadata(conversion, parts)
            os.rename(conversion.staged, conversion.release)
        except (OSError, CheckpointError, CheckpointProblems):
            # Another task may have published meanwhile, and what was to be checked is in its place.
            if not is_published(conversion):
                raise
    return _finish(conversion)


def _is_ours(conversion: Conversion) -> bool:
    return read_record(conversion.release / SOURCE).get("conversion") == conversion.identity


def _finish(conversion: Conversion) -> bool:
    """The tracker, last of what is published; then what was needed to get there goes."""
    fsync_directory(conversion.root)
    tracker = conversion.root / TRACKER
    if not tracker.exists():
        publish_text(tracker, RELEASE + "\n")
    remove_stale(tracker)
    shutil.rmtree(conversion.stagings, ignore_errors=True)
    return True


def _check(conversion: Conversion, parts: Parts) -> None:
    """Every chunk of the plan in its file, sizes, and copies equal to what they repeat."""
    problems = []
    sources: dict[str, str] = {}
    for file in conversion.files:
        part = parts[file.name]
        sources |= part["sources"]
        size = _size(conversion.staged / file.name)
        if size != part["size"]:
            problems.append(f"{conversion.staged / file.name}: has {size} bytes, its record says {part['size']}")
        problems += _chunk_problems(conversion, file, part)
    for name in conversion.source.names:
        if name.copy_of and sources.get(name.hf) != sources.get(name.copy_of):
            problems.append(
                f"{conversion.source.entries[name.hf].file}: {name.hf} is not the copy of {name.copy_of} that it is in "
                "DeepSeek's releases; torch_dist has one tensor for both, so one of them would be lost"
            )
    if problems:
        raise CheckpointProblems(problems)


def _chunk_problems(conversion: Conversion, file: ConvertFile, part: Mapping[str, Any]) -> list[str]:
    stored = [name for name in file.names if not name.copy_of]
    planned = {(name.key, c.offsets, c.sizes) for name in stored for c in chunks(name, conversion.pieces)}
    written = {(s.key, s.chunk.offsets, s.chunk.sizes) for s in map(from_json, part["chunks"])}
    return [
        f"{conversion.part(file)}: {what} {key} at {list(offsets)} of {list(sizes)}; remove it and run its task again"
        for what, boxes in (("lacks", planned - written), ("has a surplus", written - planned))
        for key, offsets, sizes in sorted(boxes)
    ]


def _recheck(
    conversion: Conversion, parts: Parts, num_workers: int, say: Callable[[str], None], every_s: float
) -> None:
    """Read every file again: a flipped bit loads without a word. A file that is wrong is written anew next time."""

    def check(file: ConvertFile, advance: Advance) -> list[str]:
        stored = [from_json(value) for value in parts[file.name]["chunks"]]
        return recheck_file(conversion.staged / file.name, stored, advance)

    progress = Progress("reading it again", sum(part["size"] for part in parts.values()), say, every_s)
    found = run_units(conversion.files, check, num_workers, progress).results
    for file, problems in zip(conversion.files, found, strict=True):
        if problems:
            conversion.part(file).unlink(missing_ok=True)
    if any(found):
        wrong = [problem for problems in found for problem in problems]
        raise CheckpointProblems([*wrong, "these files will be written again when their tasks are run again"])


def _write_metadata(conversion: Conversion, parts: Parts) -> None:
    """All files of the checkpoint that are not chunks; the same bytes whoever writes them."""
    stored: dict[str, list[tuple[str, StoredChunk]]] = {}
    sources: dict[str, str] = {}
    for file in conversion.files:
        sources |= parts[file.name]["sources"]
        for value in parts[file.name]["chunks"]:
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
    files = {file.name: {"size": parts[file.name]["size"], "xxh3": None} for file in conversion.files}
    files |= {name: {"size": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)} for name, data in small.items()}
    small[MANIFEST] = _json({"format": FORMAT, "files": files, "chunks": _located(stored)})
    small[SOURCE] = _json(
        {
            "path": str(source.directory),
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


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
