"""Publishing a cast: its files into their places, then what names them, the index last.

Whoever finishes last publishes, and it may be two at once, or one that is killed on any line of this: all write the
same bytes, and without its index the directory is no checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from r1hpc.checkpoint.cast_plan import Cast
from r1hpc.checkpoint.companions import copy_companions, publish_config, publish_index
from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, MANIFEST, read_manifest
from r1hpc.checkpoint.space import has_size
from r1hpc.errors import CheckpointError
from r1hpc.publish import fsync_directory, publish_json

FORMAT = 1


def claim_target(cast: Cast) -> None:
    """Raise CheckpointError when the directory holds a checkpoint that this cast is not."""
    started = cast.stagings.exists()
    if (cast.target / INDEX).exists():
        foreign = not _is_ours(cast)
    else:
        foreign = not started and any((cast.target / name).exists() for name in (CONFIG, "model.safetensors"))
    if foreign:
        raise CheckpointError(
            f"{cast.target}: already holds a checkpoint that was not cast from {cast.source.directory} as it is now; "
            "choose another ckpt.bf16_checkpoint, or remove the directory"
        )
    with suppress(FileNotFoundError):  # nothing has begun, or another task has just published
        for other in cast.stagings.iterdir():
            if other != cast.staging:
                # The source was another one then. Its tasks fail from now on.
                shutil.rmtree(other, ignore_errors=True)


def is_published(cast: Cast) -> bool:
    """Whether the target is this very cast, complete."""
    if not (cast.target / INDEX).exists() or not _is_ours(cast):
        return False
    files: Mapping[str, Any] = read_manifest(cast.target)["files"]
    return all(has_size(cast.target / name, record["size"]) for name, record in files.items())


def publish_if_complete(cast: Cast) -> bool:
    """Publish when every file is done; returns whether the checkpoint is complete now."""
    if not is_published(cast):
        records = {file.name: cast.record(file) for file in cast.files}
        if not all(records.values()):
            # Another task may have published, and removed the records, since we looked.
            return is_published(cast) and _finish(cast)
        try:
            _publish(cast, records)
        except OSError as error:
            if not is_published(cast):
                raise CheckpointError(f"{cast.target}: cannot be published ({error}); run the task again") from error
    return _finish(cast)


def _publish(cast: Cast, records: Mapping[str, Mapping[str, Any]]) -> None:
    for file in cast.files:
        with suppress(FileNotFoundError):  # it is in its place already
            os.replace(cast.staged(file), cast.target / file.name)
    fsync_directory(cast.target)
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": record["size"], "tensors": record["tensors"]} for name, record in records.items()},
        "source": {"path": str(cast.source.directory), "identity": cast.source.identity},
    }
    publish_json(cast.target / MANIFEST, manifest, cast.staging)
    copy_companions(cast.source.directory, cast.target, cast.staging)
    publish_config(cast.source.config, cast.target, quantized=False, beside=cast.staging)
    weight_map = {entry.name: file.name for file in cast.files for entry in file.entries}
    publish_index(cast.target, weight_map, sum(file.size_bytes for file in cast.files), cast.staging)


def _finish(cast: Cast) -> bool:
    shutil.rmtree(cast.stagings, ignore_errors=True)
    return True


def _is_ours(cast: Cast) -> bool:
    identity: object = read_manifest(cast.target).get("source", {}).get("identity")
    return identity == cast.source.identity
