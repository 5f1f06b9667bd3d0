"""COMMITTED.json: what makes a directory a commit, and whether it still is one."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.checkpoint.commits.names import COMMITTED, iteration_of
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.errors import CheckpointError
from r1hpc.publish import fsync_directory, publish_json

SMALL_BYTES = 256 << 20
"""Files up to this are hashed whenever a commit is judged: of R1 that is everything but the weights, 0.1 GB in all."""
_FORMAT = 1
_BAND_BYTES = 4 << 20
_GONE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class InvalidCommit(CheckpointError):
    """A directory that has the name of a commit and is none: never complete, damaged, or made by another hand."""


@dataclass(frozen=True)
class CommittedFile:
    """A file of a commit."""

    size: int
    """Bytes."""
    xxh3: str | None
    """xxh3_64; null for weights, whose chunks have theirs in the manifest, which is hashed itself."""


@dataclass(frozen=True)
class Commit:
    """A directory that a run can go on from."""

    directory: Path
    iteration: int
    """Of the rollout that was trained last."""
    committed_at: float
    """Seconds since 1970."""
    files: Mapping[str, CommittedFile]
    """By path relative to the directory; all but COMMITTED.json."""
    record: Mapping[str, Any]
    """What the run noted: its id, digest of the configuration, weight version, ..."""

    @property
    def size_bytes(self) -> int:
        """Of all files, without COMMITTED.json."""
        return sum(file.size for file in self.files.values())


def seal(directory: Path, iteration: int, manifest_xxh3: str, record: Mapping[str, Any]) -> None:
    """Write COMMITTED.json, after everything that it names is on the disk.

    Raises CheckpointError where the trainers' files are not those of the manifest with this hash.
    """
    files = _gathered(directory, manifest_xxh3)
    content = {
        "format": _FORMAT,
        "iteration": iteration,
        "committed_at": time.time(),
        "files": {name: asdict(file) for name, file in files.items()},
        "record": dict(record),
    }
    for parent in {directory, *(directory.joinpath(name).parent for name in files)}:
        fsync_directory(parent)
    publish_json(directory / COMMITTED, {"commit": content, "xxh3": _digest(content)})


def judge(directory: Path) -> Commit:
    """The commit in `directory`: every file is there with its size, and small ones with their content.

    Raises InvalidCommit with the reason where it is none. Any other CheckpointError says that this cannot be known:
    the file system does not answer, or a newer version wrote it.
    """
    try:
        commit = _read(directory)
        if problems := _missing(commit):
            rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise InvalidCommit(f"{directory}: {problems[0]}{rest}")
        for name, file in commit.files.items():
            if file.xxh3 is not None and file.size <= SMALL_BYTES and hash_file(directory / name) != file.xxh3:
                raise InvalidCommit(f"{directory}: {name} is not what was committed: its xxh3 is another")
    except _GONE as error:
        raise InvalidCommit(f"{directory}: {error.strerror}: {error.filename}") from error
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or directory}: cannot be read ({error.strerror}), so nobody can say whether"
            f" {directory.name} is complete; put the file system or the permissions right, or rename {directory.name}"
            " to go on from the commit before it"
        ) from error
    return commit


def hash_file(path: Path) -> str:
    """xxh3_64 of a file."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as stream:
        while band := stream.read(_BAND_BYTES):
            digest.update(band)
    return digest.hexdigest()


def _read(directory: Path) -> Commit:
    try:
        outer = json.loads((directory / COMMITTED).read_bytes())
        content, xxh3 = outer["commit"], outer["xxh3"]
    except FileNotFoundError:
        raise InvalidCommit(f"{directory}: has no {COMMITTED}: it was never committed") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InvalidCommit(f"{directory}: {COMMITTED} is damaged") from None
    if not isinstance(content, dict) or _digest(content) != xxh3:
        raise InvalidCommit(f"{directory}: {COMMITTED} is damaged: its xxh3 is another")
    if content.get("format") != _FORMAT:
        raise CheckpointError(
            f"{directory}: {COMMITTED} has format {content.get('format')!r}; this version reads format {_FORMAT}: use"
            f" the version that wrote it, or rename {directory.name} to go on from the commit before it"
        )
    if content["iteration"] != iteration_of(directory.name):
        raise InvalidCommit(f"{directory}: is the commit of iteration {content['iteration']}, renamed or copied")
    files = {name: CommittedFile(**file) for name, file in content["files"].items()}
    return Commit(directory, content["iteration"], content["committed_at"], files, content["record"])


def _missing(commit: Commit) -> list[str]:
    """What is wrong with names and sizes."""
    problems = []
    for name, file in commit.files.items():
        try:
            found = os.stat(commit.directory / name)
        except _GONE:
            problems.append(f"{name} is missing")
            continue
        if not stat.S_ISREG(found.st_mode):
            problems.append(f"{name} is no file")
        elif found.st_size != file.size:
            problems.append(f"{name} has {found.st_size:,} bytes; {file.size:,} were committed")
    return problems


def _gathered(directory: Path, manifest_xxh3: str) -> dict[str, CommittedFile]:
    """Every file in it, hashed and on the disk."""
    data = (directory / MANIFEST).read_bytes()
    if (found := xxhash.xxh3_64_hexdigest(data)) != manifest_xxh3:
        raise CheckpointError(f"{directory / MANIFEST}: has xxh3 {found}; the trainers wrote {manifest_xxh3}")
    saved = {name: CommittedFile(**file) for name, file in json.loads(data)["files"].items()}
    saved[MANIFEST] = CommittedFile(len(data), manifest_xxh3)
    files = saved | {name: _written(directory / name) for name in _names(directory) - saved.keys()}
    for name, file in sorted(files.items()):
        if (size := os.stat(directory / name).st_size) != file.size:
            raise CheckpointError(f"{directory / name}: has {size:,} bytes; {file.size:,} were written")
    return dict(sorted(files.items()))


def _names(directory: Path) -> set[str]:
    """Paths of all files in a directory, relative to it."""
    files = (Path(base, name) for base, _, names in os.walk(directory) for name in names)
    return {str(file.relative_to(directory)) for file in files}


def _written(path: Path) -> CommittedFile:
    """A file that was written beside the trainers': whoever did need not have waited for the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())
    return CommittedFile(path.stat().st_size, hash_file(path))


def _digest(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
