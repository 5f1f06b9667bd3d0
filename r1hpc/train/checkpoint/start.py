"""Where a run begins: at its own newest commit, at what `load` holds, or at the reference; never by silence elsewhere.

The reference implementation starts over from the reference, without a word, in a directory that it finds no tracker
in; here that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from r1hpc.checkpoint.commit import newest_commit
from r1hpc.checkpoint.commits.names import is_bookkeeping
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


def committed_or_tracked(directory: Path) -> Found | None:
    """The newest valid commit; without any, what a tracker names: a conversion, or what Megatron itself saved."""
    if (commit := newest_commit(directory)) is not None:
        return Found(commit.directory, commit.iteration)
    return tracked(directory)


def tracked(directory: Path) -> Found | None:
    """The checkpoint that Megatron's tracker file names; null where there is no tracker.

    Raises CheckpointError for a tracker that names nothing that is there.
    """
    if not os.path.lexists(directory / TRACKER):
        return None
    found = resolve(directory)
    iteration = None if found.name == _RELEASE else int(found.name.removeprefix("iter_"))
    return Found(found, iteration)


def where_to_start(ckpt: CkptConfig, run_save: Path, newest: Newest = committed_or_tracked) -> Start:
    """The rollout after the run's own newest commit; for its first attempt what `load` says, else `ref_load`.

    run_save: where the run commits to. newest: how checkpoints are found. Reads directories, and changes nothing.
    Raises CheckpointError where either directory holds files but no checkpoint (unless ckpt.fresh), is a Hugging Face
    checkpoint or no directory, or where there is nothing to start from.
    """
    reasons = []
    for directory, option in _places(ckpt, run_save):
        entries = _entries(directory, option)
        found = newest(directory) if entries else None
        if found is not None:
            return _from(found)
        if entries and not ckpt.fresh:
            raise CheckpointError(_refusal(directory, entries, option))
        reasons.append(
            f"{directory} {'has no checkpoint, and ckpt.fresh is set' if entries else 'is not there or empty'}"
        )
    why = "; ".join(reasons)
    if ckpt.ref_load is None:
        raise CheckpointError(f"{why}; ckpt.ref_load is not set: nothing to start from; set ref_load")
    return Start(Path(ckpt.ref_load), 0, False, f"starting at rollout 0 from the reference {ckpt.ref_load}: {why}")


def _places(ckpt: CkptConfig, run_save: Path) -> Iterator[tuple[Path, str]]:
    """Where to look, in this order: were `load` first, a requeued run would begin again and again where it did."""
    yield run_save, "ckpt.save"
    if ckpt.load is not None and Path(ckpt.load) != run_save:
        yield Path(ckpt.load), "ckpt.load"


def _from(found: Found) -> Start:
    if found.iteration is None:
        return Start(found.directory, 0, False, f"starting at rollout 0 from the weights of {found.directory}")
    following = found.iteration + 1
    return Start(found.directory, following, True, f"resuming {found.directory} at rollout {following}")


def _entries(directory: Path, option: str) -> list[str]:
    """Names in it, but for those that killed saves left: it was this run that was killed, and it begins again."""
    try:
        names = os.listdir(directory)
        return sorted(name for name in names if not is_staging(name) and not is_bookkeeping(name))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{directory}: {option} must be a directory of checkpoints{why_unseen(directory)} ({error.strerror})"
        ) from error


def _refusal(directory: Path, entries: list[str], option: str) -> str:
    if METADATA in entries:
        return (
            f"{directory}: is a checkpoint itself; {option} must be the directory that it lies in: {directory.parent}?"
        )
    if _is_hugging_face(directory):
        return (
            f"{directory}: is a Hugging Face checkpoint; {option} takes what training saved. To start from these"
            " weights, convert them (python -m jobs.convert CONFIG) and name the result as ckpt.ref_load"
        )
    shown = ", ".join(entries[:_SHOWN]) + (f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else "")
    return (
        f"{directory}: holds files ({shown}) but no checkpoint: no valid commit, and no {TRACKER}. Starting over would"
        f" hide that something is lost: python -m r1hpc.checkpoint commits list {directory} says what is wrong; name"
        f" another {option}, remove the files, or set ckpt.fresh: true"
    )


def _is_hugging_face(directory: Path) -> bool:
    try:
        return kind_of(directory) is Kind.HUGGING_FACE
    except CheckpointError:
        return False
