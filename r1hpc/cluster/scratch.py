"""A node's scratch directory: where Ray keeps its sockets and logs, private, short, and known by its owner's mark."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from r1hpc.cluster.processes import ATTEMPT, RUN

_SOCKET_PATH_LIMIT = 107
_SOCKET_IN_SCRATCH = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
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


def remove_scratch(scratch: Path) -> None:
    """Remove it; what cannot be removed stays, for the attempt is over either way."""
    shutil.rmtree(scratch, ignore_errors=True)


def keep_ray_logs(scratch: Path, target: Path) -> None:
    """Copy the ends of Ray's log files out of a scratch directory, for a person to read."""
    logs = scratch / "session_latest" / "logs"
    for source in sorted(logs.glob("*")):
        if not source.is_file() or source.stat().st_size == 0:
            continue
        target.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _KEPT_LOG_BYTES))
            (target / source.name).write_bytes(stream.read())


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
