"""A node's scratch directory: where Ray keeps its sockets and logs, private, short, and known by its owner's mark."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from r1hpc.cluster.processes import ATTEMPT, RUN

SCRATCH = "R1HPC_SCRATCH"
"""Environment variable of what a node's agent starts: its scratch directory, which goes when the agent does."""

_SOCKET_PATH_LIMIT = 107
_SOCKET_IN_SCRATCH = len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_RAY = "ray"
_OWNER = "owner.json"
_KEPT_LOG_BYTES = 1 << 20


def make_scratch(node: str, marks: Mapping[str, str]) -> Path:
    """The scratch directory of this node, empty, mode 700; one that a killed agent left behind is replaced.

    `node` names run, attempt and host, `marks` are those of its processes. /tmp is taken where the job's own temporary
    directory has a path too long for Unix sockets.
    """
    name = f"r1-{os.getuid()}-{hashlib.sha256(node.encode()).hexdigest()[:10]}"
    path = next(base / name for base in _bases() if len(str(base / name)) + _SOCKET_IN_SCRATCH <= _SOCKET_PATH_LIMIT)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    (path / _OWNER).write_text(json.dumps(dict(marks)), encoding="utf-8")
    return path


def ray_directory(scratch: Path) -> Path:
    """What Ray gets as its temporary directory.

    One level below: Ray opens its own to everybody (mode 777), and with it sockets and logs of its session.
    """
    return scratch / _RAY


def remove_scratch(scratch: Path) -> None:
    """Remove it; what cannot be removed stays with its owner's mark, for the attempt is over either way."""
    # The mark last: a kill in between leaves what the run's next attempt still finds.
    for path in _inside(scratch):
        if path.name != _OWNER:
            _remove(path)
    if all(path.name == _OWNER for path in _inside(scratch)):
        _remove(scratch)


def _inside(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # somebody else has removed it


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


def keep_ray_logs(scratch: Path, target: Path) -> None:
    """Copy the ends of Ray's log files out of a scratch directory, for a person to read; nothing that a link names."""
    # Not session_latest, which is a link.
    sessions = [path for path in sorted(ray_directory(scratch).glob("session_*")) if _is_ours(path, stat.S_ISDIR)]
    for logs in [session / "logs" for session in sessions]:
        for source in sorted(logs.glob("*")) if _is_ours(logs, stat.S_ISDIR) else ():
            if _is_ours(source, stat.S_ISREG):
                _keep_end(source, target)


def _keep_end(source: Path, target: Path) -> None:
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size == 0:
            return
        target.mkdir(parents=True, exist_ok=True)
        stream.seek(max(0, size - _KEPT_LOG_BYTES))
        (target / source.name).write_bytes(stream.read())


def _is_ours(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether it is of this kind, no link to such a thing, and our own."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return kind(found.st_mode) and found.st_uid == os.getuid()


def scratch_of_run(run_id: str) -> dict[Path, str]:
    """Scratch directories of a run on this machine, each with its attempt's directory."""
    found = {}
    for owner in [path for base in _bases() for path in base.glob(f"r1-{os.getuid()}-*/{_OWNER}")]:
        try:
            marks = json.loads(owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # being made or removed just now
        if marks.get(RUN) == run_id:
            found[owner.parent] = str(marks.get(ATTEMPT))
    return found


def _bases() -> list[Path]:
    """Where it may lie: the job's own temporary directory, unless that has too long a path."""
    return list(dict.fromkeys([Path(tempfile.gettempdir()), Path("/tmp")]))
