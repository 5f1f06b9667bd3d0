"""Without Slurm: the stages in order in one detached process of this host, followed through its log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from r1hpc.cluster.leftovers import processes_of
from r1hpc.errors import SubmitError
from r1hpc.publish import publish_json
from r1hpc.rundir import RunDir
from r1hpc.submit.follow import LogTail
from r1hpc.submit.parameters import HOME
from r1hpc.submit.stages import Stage


def log_of(directory: RunDir) -> Path:
    """What the stages print."""
    return directory.logs / "local.log"


def exit_record(directory: RunDir) -> Path:
    """Published when the last stage has ended: {"exit_code", "reason"}."""
    return directory.logs / "local.json"


def start(directory: RunDir, run_id: str, stages: Sequence[Stage], python: str) -> int:
    """Start the detached process that works the stages off; returns its pid."""
    # First of all: a submit that is killed here must be known to have been at work, and where.
    record = {"cluster": "local", "host": socket.gethostname(), "pid": None, "stages": [stage.name for stage in stages]}
    publish_json(directory.jobs, record)
    exit_record(directory).unlink(missing_ok=True)
    environment = dict(os.environ, R1HPC_RUN=run_id, PYTHONUNBUFFERED="1")
    environment["PYTHONPATH"] = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [python, "-m", "r1hpc.submit.local_runner", str(directory.root), *(stage.name for stage in stages)]
    with log_of(directory).open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # it outlives this terminal
        )
    publish_json(directory.jobs, record | {"pid": process.pid})
    return process.pid


def live_pids(run_id: str) -> list[int]:
    """What is live of a run's stages on this host: the detached process, and tasks of its that have outlived it.

    Told by their environment, so a pid that another program got is none of them. What an agent started is left out:
    the next attempt ends it.
    """
    return [process.pid for process in processes_of(run_id) if process.node is None]


def follow_local(
    directory: RunDir,
    run_id: str,
    pid: int,
    say: Callable[[str], None],
    from_byte: int,
    deadline_s: float | None = None,
) -> None:
    """Print the log as it grows until the process has ended. Raises SubmitError when a stage failed."""
    started = time.monotonic()
    tail = LogTail({log_of(directory): from_byte})
    while True:
        alive = pid in live_pids(run_id)
        for line in tail.new_lines([log_of(directory)]):
            say(f"  | {line}")
        if not alive:
            break
        if deadline_s is not None and time.monotonic() - started > deadline_s:
            raise SubmitError(f"not finished after {deadline_s:.0f} s; it goes on, see {log_of(directory)}")
        time.sleep(0.3)
    try:
        outcome = json.loads(exit_record(directory).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SubmitError(f"the local run ended without a verdict: it was killed; log: {log_of(directory)}") from None
    if outcome["exit_code"] != 0:
        raise SubmitError(f"{outcome['reason']}; log: {log_of(directory)}")
