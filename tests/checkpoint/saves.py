"""What trainers hand to a commit, in small: files in a staging directory, a manifest, one rename."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import xxhash

from r1hpc.checkpoint.commit import Commit, Commits
from r1hpc.publish import fsync_directory

DATA = {"__0_0.distcp": b"weights of rank 0", "__1_0.distcp": b"weights of rank 1"}


@dataclass(frozen=True)
class Saved:
    directory: Path
    size_bytes: int
    manifest_xxh3: str
    seconds: float


def save(directory: Path, iteration: int, seconds: float = 0.01) -> Saved:
    """Save as trainers do; the weights tell the iteration."""
    staging = directory.parent / f".{directory.name}.0a1b2c3d.saving"
    staging.mkdir()
    weights = {name: data + b" after %d" % iteration for name, data in DATA.items()}
    trainer = b'{"iteration": %d}' % iteration
    files: dict[str, dict[str, object]] = {name: {"size": len(data), "xxh3": None} for name, data in weights.items()}
    files["trainer.json"] = {"size": len(trainer), "xxh3": xxhash.xxh3_64_hexdigest(trainer)}
    manifest = json.dumps({"format": 1, "files": files}).encode()
    content = weights | {"trainer.json": trainer, "manifest.json": manifest}
    for name, data in content.items():
        with open(staging / name, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    fsync_directory(staging)
    os.rename(staging, directory)
    fsync_directory(directory.parent)
    return Saved(directory, sum(map(len, content.values())), xxhash.xxh3_64_hexdigest(manifest), seconds)


def write_rest(directory: Path) -> None:
    """What a run writes beside the trainers' files."""
    (directory / "cursor.json").write_text('{"taken": 320}')


def commit(commits: Commits, iteration: int) -> Commit:
    """One commit, from its begin to its end."""
    saved = save(commits.begin(iteration), iteration)
    return commits.finish(iteration, saved, write_rest, {"run_id": "r1", "weight_version": iteration + 1})


def committed(root: Path, *iterations: int) -> Commits:
    """A directory that has these commits, as a run leaves it that keeps 9."""
    commits = Commits(root, keep=9)
    for iteration in iterations:
        commit(commits, iteration)
    return commits
