"""The directory that a save fills: hidden beside the one that it becomes, so that nothing half done looks complete."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from r1hpc.errors import CheckpointError

_SUFFIX = ".saving"


def make_staging(directory: Path) -> Path:
    """A new directory beside `directory`, to be filled and renamed; what killed saves left there is removed.

    A run has one save going on at a time, so whatever else is being filled beside it is left over.

    Raises CheckpointError where `directory` is there already, or cannot be made.
    """
    try:
        if directory.exists() and any(directory.iterdir()):
            raise CheckpointError(
                f"{directory}: is there already and not empty; a checkpoint is never written over: remove it, or save"
                " to another"
            )
        directory.parent.mkdir(parents=True, exist_ok=True)
        for left in directory.parent.glob(f".*{_SUFFIX}"):
            remove_staging(left)
        staging = directory.parent / f".{directory.name}.{secrets.token_hex(4)}{_SUFFIX}"
        staging.mkdir()
    except OSError as error:
        raise CheckpointError(
            f"{directory}: no checkpoint can be written there ({error.strerror}: {error.filename}); ckpt.save must be a"
            " directory on the shared file system that this user may write to"
        ) from error
    return staging


def is_staging(name: str) -> bool:
    """Whether a save that did not end made the directory of this name."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def remove_staging(staging: Path) -> None:
    """Remove a directory of files; what other ranks remove meanwhile is no error."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(staging):
            (staging / name).unlink(missing_ok=True)
        staging.rmdir()
