"""Names in a directory of commits; what a glob for iterations finds was published as a whole."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

COMMITTED = "COMMITTED.json"
"""Written last: a directory without it was never committed."""
OWNER = ".owner.json"
_ITERATION = re.compile(r"iter_(\d{7,})")
_LEFTOVER = re.compile(r"\.{1,2}iter_\d{7,}\.[0-9a-f]{8}\.(uncommitted|removing)(\..+)?")
"""Two dots: what the trainers fill beside the directory that they were given."""
_REPLACED = re.compile(r"iter_\d{7,}\.[0-9a-f]{8}\.replaced")


def committed_path(root: Path, iteration: int) -> Path:
    """Where the commit of an iteration lies."""
    return root / f"iter_{iteration:07d}"


def iteration_of(name: str) -> int | None:
    """Of a directory that claims to be a commit; null for every other name."""
    found = _ITERATION.fullmatch(name)
    return int(found[1]) if found else None


def uncommitted_path(root: Path, iteration: int) -> Path:
    """Where a commit is made; another one each time, so that two attempts never share it."""
    return root / f".iter_{iteration:07d}.{_lot()}.uncommitted"


def removing_path(commit: Path) -> Path:
    """What a commit is renamed to before its files go, so that a half-removed one is never taken for one."""
    return commit.with_name(f".{commit.name}.{_lot()}.removing")


def replaced_path(directory: Path) -> Path:
    """What a directory that is in the way of a commit is renamed to; it stays until somebody prunes."""
    return directory.with_name(f"{directory.name}.{_lot()}.replaced")


def is_leftover(name: str) -> bool:
    """Whether it was left by a save or a removal that was killed, or is one that goes on."""
    return _LEFTOVER.fullmatch(name) is not None


def is_replaced(name: str) -> bool:
    """Whether it was in the way of a commit."""
    return _REPLACED.fullmatch(name) is not None


def is_bookkeeping(name: str) -> bool:
    """Whether the name is none that a person or another program put there."""
    return is_leftover(name) or name == OWNER or name.startswith(f".{OWNER}.")


def _lot() -> str:
    return secrets.token_hex(4)
