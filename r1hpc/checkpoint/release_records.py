"""The two records that a conversion leaves beside its checkpoint, read back and checked: manifest.json, source.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.conversion import SOURCE
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.records import read_object
from r1hpc.errors import CheckpointError


@dataclass(frozen=True)
class FileRecord:
    """What was noted of a file when it was written."""

    size_bytes: int
    xxh3: str | None
    """Of the whole file; null where its chunks have theirs."""


@dataclass(frozen=True)
class ReleaseManifest:
    """manifest.json."""

    files: Mapping[str, FileRecord]
    chunks: Mapping[str, tuple[StoredChunk, ...]]
    """Those of each file."""


@dataclass(frozen=True)
class SourceRecord:
    """source.json: the Hugging Face checkpoint as it was converted."""

    path: Path
    identity: str
    config: Mapping[str, Any]
    hashes: Mapping[str, str]
    """xxh3 of every tensor as it was stored there, scales included."""


def read_release_manifest(directory: Path) -> ReleaseManifest | None:
    """The manifest in `directory`, null where there is none. Raises CheckpointError when it is none of ours."""
    file = directory / MANIFEST
    if (value := read_object(file)) is None:
        return None
    with _naming(file, "manifest"):
        files = {
            name: FileRecord(_checked(record["size"], int), None if record["xxh3"] is None else str(record["xxh3"]))
            for name, record in value["files"].items()
        }
        chunks: dict[str, list[StoredChunk]] = {}
        for key, rows in value["chunks"].items():
            for offsets, sizes, name, offset, length, xxh3 in rows:
                box = Chunk(*(tuple(_checked(number, int) for number in numbers) for numbers in (offsets, sizes)))
                begin, count = _checked(offset, int), _checked(length, int)
                chunks.setdefault(_checked(name, str), []).append(StoredChunk(key, box, begin, count, str(xxh3)))
    ordered = {name: tuple(sorted(stored, key=lambda chunk: chunk.offset)) for name, stored in chunks.items()}
    return ReleaseManifest(files, ordered)


def read_source_record(directory: Path) -> SourceRecord | None:
    """The record of the source, null where there is none. Raises CheckpointError when it is none of ours."""
    file = directory / SOURCE
    if (value := read_object(file)) is None:
        return None
    with _naming(file, "record of a source"):
        path, identity = _checked(value["path"], str), _checked(value["identity"], str)
        config, hashes = _checked(value["config"], dict), _checked(value["tensors"], dict)
    return SourceRecord(Path(path), identity, config, hashes)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


@contextmanager
def _naming(file: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{file}: is no {what} that convert wrote ({reason})") from error
