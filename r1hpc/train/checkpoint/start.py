"""Where a run begins: at the newest checkpoint of `load`, or at the reference; never by silence at the wrong one.

The reference implementation starts over from the reference, without a word, in a directory that it finds no tracker
in; here that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from r1hpc.checkpoint.kind import Kind, kind_of
from r1hpc.checkpoint.torch_dist import METADATA, TRACKER, resolve, why_unseen
from r1hpc.config.training import CkptConfig
from r1hpc.errors import CheckpointError
from r1hpc.train.checkpoint.staging_directory import is_staging

_SHOWN = 5
_RELEASE = "release"


@dataclass(frozen=True)
class Found:
    """The newest checkpoint of a directory."""

    directory: Path
    iteration: int | None
    """Of the rollout that it was saved after; null for a release, which was never trained."""


@dataclass(frozen=True)
class Start:
    """What to load, and the first rollout."""

    directory: Path
    rollout: int
    resumes: bool
    """With optimizer, schedule and random states; else the weights alone."""
    reason: str
    """For the log."""


Newest = Callable[[Path], Found | None]
"""The newest checkpoint of a directory that exists; null where it has none."""


def tracked(directory: Path) -> Found | None:
    """The checkpoint that Megatron's tracker file names; null where there is no tracker.

    Raises CheckpointError for a tracker that names nothing that is there.
    """
    if not os.path.lexists(directory / TRACKER):
        return None
    found = resolve(directory)
    iteration = None if found.name == _RELEASE else int(found.name.removeprefix("iter_"))
    return Found(found, iteration)


def where_to_start(ckpt: CkptConfig, run_save: Path, newest: Newest = tracked) -> Start:
    """What `load` says: the next rollout of its newest checkpoint, or rollout 0 of a release or of `ref_load`.

    run_save: where the run commits to, which `load` means by default. newest: how checkpoints are found; the rule is
    the same for trackers and for commits. Reads directories, and changes nothing.
    Raises CheckpointError where `load` holds files but no checkpoint (unless ckpt.fresh), is a Hugging Face checkpoint
    or no directory, or where there is nothing to start from.
    """
    load = Path(ckpt.load) if ckpt.load is not None else run_save
    entries = _entries(load)
    found = newest(load) if entries else None
    if found is not None and found.iteration is not None:
        following = found.iteration + 1
        return Start(found.directory, following, True, f"resuming {found.directory} at rollout {following}")
    if found is not None:
        return Start(found.directory, 0, False, f"starting at rollout 0 from the weights of {found.directory}")
    if entries and not ckpt.fresh:
        raise CheckpointError(_refusal(load, entries))
    why = f"{load} {'has no checkpoint, and ckpt.fresh is set' if entries else 'is not there or empty'}"
    if ckpt.ref_load is None:
        raise CheckpointError(f"{why}, and ckpt.ref_load is not set: nothing to start from; set ref_load")
    return Start(Path(ckpt.ref_load), 0, False, f"starting at rollout 0 from the reference {ckpt.ref_load}: {why}")


def _entries(directory: Path) -> list[str]:
    """Names in it, but for those that killed saves left: it was this run that was killed, and it begins again."""
    try:
        return sorted(name for name in os.listdir(directory) if not is_staging(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{directory}: ckpt.load must be a directory of checkpoints{why_unseen(directory)} ({error.strerror})"
        ) from error


def _refusal(load: Path, entries: list[str]) -> str:
    if METADATA in entries:
        return (
            f"{load}: is a checkpoint itself; ckpt.load must be the directory that it lies in, with {TRACKER}:"
            f" {load.parent}?"
        )
    if _is_hugging_face(load):
        return (
            f"{load}: is a Hugging Face checkpoint; ckpt.load takes what training saved. To start from these weights,"
            " convert them (python -m jobs.convert CONFIG) and name the result as ckpt.ref_load"
        )
    shown = ", ".join(entries[:_SHOWN]) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")
    return (
        f"{load}: holds files ({shown}) but no checkpoint ({TRACKER} is not there). Starting over from ckpt.ref_load"
        " would hide that something is lost: name another ckpt.load, remove the files, or set ckpt.fresh: true"
    )


def _is_hugging_face(directory: Path) -> bool:
    try:
        return kind_of(directory) is Kind.HUGGING_FACE
    except CheckpointError:
        return False
