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
from r1hpc.cluster.requeue.ledger import unfinished
from r1hpc.config import Config
from r1hpc.config.dump import config_hash, dump_config
from r1hpc.errors import SubmitError
from r1hpc.plan import Plan, plan_to_json, render_plan
from r1hpc.publish import publish_json, publish_text
from r1hpc.rundir import RunDir
from r1hpc.submit.changes import changed
from r1hpc.submit.stages import done_iterations

_PATTERN_CHARACTERS = "%\\"
"""sbatch --output: % begins a pattern, and a backslash anywhere turns the patterns off."""


@dataclass(frozen=True)
class PreparedRun:
    """A run directory that jobs can work from."""

    directory: RunDir
    run_id: str
    notices: tuple[str, ...]


def run_directory(config: Config) -> RunDir:
    """Where the run lives: run.root / run.name. Raises SubmitError when Slurm could not write its logs there."""
    found = sorted(set(config.run.root) & set(_PATTERN_CHARACTERS))
    if found:
        raise SubmitError(
            f"run.root = {config.run.root}: {' and '.join(found)} has a meaning in Slurm's file name patterns, so the "
            "logs of the jobs could not be written there; choose a directory without it"
        )
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


def prepare(
    config: Config,
    plan: Plan,
    restart: str,
    *,
    again: bool = False,
    pinned: Sequence[str] = (),
    sweep_of: str | None = None,
    signal_lead_s: int | None = None,
    command: Sequence[str] = (),
) -> PreparedRun:
    """Write config.yaml, plan.json, plan.txt and run.json; an existing run keeps its id. Nothing of it may be live.

    pinned: NodeNames of the hostfile in its order, spares included; a requeue chooses anew from them.
    again: for the restart of a job, not a new submit: attempts that failed before still count against the budgets.
    signal_lead_s: what the job's own --signal says, where it was not made from the plan.
    sweep_of: id of the run whose sweep this is an element of: the array carries that run's id.
    command: arguments of r1hpc.submit that go on with it, as a person gave them, for r1hpc.status to print.
    Raises SubmitError when the directory cannot be written.
    """
    directory = run_directory(config)
    for folder in (directory.root, directory.logs, directory.sbatch, directory.submitit, directory.attempts):
        _make(folder)
    known = read_json(directory.run)
    digest = config_hash(config)
    notices = changed(config, directory)
    if known and known["config_hash"] != digest:
        kept = _keep(directory, known["config_hash"])
        notices = (
            *notices,
            "the science of this run has changed since its last submit, and its next attempt goes on with the new "
            f"one; the old configuration is {kept}",
        )
    if not again and (cut_off := unfinished(str(directory.root))) is not None:
        notices = (*notices, f"{cut_off}; this submit goes on from the run's last commit")
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
        "max_interruptions": config.run.max_interruptions,
        "signal_lead_s": plan.signal_lead_s if signal_lead_s is None else signal_lead_s,
        "pinned": list(pinned) or (known.get("pinned", []) if again else []),
        "num_nodes": config.hosts.num_nodes,
        "sweep_of": sweep_of,
        "command": list(command),
        "cwd": os.getcwd(),  # paths of the command, and of its configuration, may be relative to it
    }
    publish_text(directory.config, dump_config(config))
    publish_json(directory.plan, plan_to_json(plan))
    publish_text(directory.plan_text, render_plan(plan) + "\n")
    # After the configuration: until then run.json names the hash of what the last complete submit ran, which is kept.
    publish_json(directory.run, record)
    if not again:
        directory.hold.unlink(missing_ok=True)
        done = done_iterations(directory)
        if done is not None and done < config.rollout.num_rollout:
            directory.done.unlink()
            notices = (*notices, f"the run was complete with {done} iterations; it goes on to num_rollout")
    return PreparedRun(directory, run_id, notices)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of the run directory, {} when the file is not there. Raises SubmitError when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SubmitError(f"{path}: not readable as JSON ({error}); move the directory away or mend the file") from None
    if not isinstance(value, dict):
        raise SubmitError(f"{path}: is no JSON object; move the directory away or mend the file")
    return value


def _keep(directory: RunDir, digest: str) -> Path:
    """Copy config.yaml to config.DIGEST.yaml, and never again.

    A submit that was killed after it wrote the new configuration has kept the old one already.
    """
    kept = directory.root / f"config.{digest}.yaml"
    if not kept.exists() and directory.config.exists():
        publish_text(kept, directory.config.read_text(encoding="utf-8"))
    return kept


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
