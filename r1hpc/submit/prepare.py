"""Making the run directory: the resolved configuration, the plan, the run's identity."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import r1hpc
from r1hpc.config import Config
from r1hpc.config.dump import config_hash, dump_config
from r1hpc.errors import SubmitError
from r1hpc.plan import Plan, plan_to_json, render_plan
from r1hpc.publish import publish_json, publish_text
from r1hpc.rundir import RunDir


@dataclass(frozen=True)
class PreparedRun:
    """A run directory that jobs can work from."""

    directory: RunDir
    run_id: str
    notices: tuple[str, ...]


def run_directory(config: Config) -> RunDir:
    """Where the run lives: run.root / run.name."""
    return RunDir(Path(config.run.root) / config.run.name)


@contextmanager
def locked(directory: RunDir) -> Iterator[None]:
    """Keep a second submit of the same run out while this one works; released by the kernel when we die."""
    _make(directory.root)
    with open(directory.root / ".submit.lock", "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SubmitError(f"another submit is working on {directory.root} right now; wait for it to end") from None
        except OSError:
            pass  # a file system without locks: the check for live jobs is what remains
        yield


def known_run_id(directory: RunDir) -> str | None:
    """The id of the run that lives in the directory already."""
    return _read(directory.run).get("run_id")


def prepare(
    config: Config, plan: Plan, restart: str, *, again: bool = False, pinned: Sequence[str] = ()
) -> PreparedRun:
    """Write run.json, config.yaml, plan.json and plan.txt; an existing run keeps its id.

    pinned: NodeNames of the hostfile in its order, spares included; a requeue chooses anew from them.
    again: for the restart of a job, not a new submit: attempts that failed before still count against run.max_crashes.
    Raises SubmitError when the directory cannot be written.
    """
    directory = run_directory(config)
    for folder in (directory.root, directory.logs, directory.sbatch, directory.submitit, directory.attempts):
        _make(folder)
    known = _read(directory.run)
    digest = config_hash(config)
    notices: tuple[str, ...] = ()
    if known and known["config_hash"] != digest:
        kept = directory.root / f"config.{known['config_hash']}.yaml"
        os.replace(directory.config, kept)
        notices = (f"the science of this run has changed since its last submit; the old configuration is {kept}",)
    run_id = known.get("run_id") or f"{config.run.name}-{secrets.token_hex(3)}"
    record = {
        "run_id": run_id,
        "name": config.run.name,
        "created": known.get("created", time.time()),
        "submitted": known["submitted"] if again and known else time.time(),
        "config_hash": digest,
        "version": r1hpc.__version__,
        "restart": restart,
        "max_crashes": config.run.max_crashes,
        "signal_lead_s": plan.signal_lead_s,
        "pinned": list(pinned) or (known.get("pinned", []) if again else []),
        "num_nodes": config.hosts.num_nodes,
    }
    if not again:
        directory.hold.unlink(missing_ok=True)
    publish_text(directory.config, dump_config(config))
    publish_json(directory.plan, plan_to_json(plan))
    publish_text(directory.plan_text, render_plan(plan) + "\n")
    publish_json(directory.run, record)
    return PreparedRun(directory, run_id, notices)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(folder))
    except OSError as error:
        raise SubmitError(
            f"run directory {folder}: {error.strerror}; set run.root to a directory that you may write "
            "and that all nodes share"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SubmitError(f"{path}: not readable as JSON ({error}); move the directory away or mend the file") from None
