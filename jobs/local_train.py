"""The train job without Slurm: attempts on this one host, one after the other, until the requeue decision says stop."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobs.local import run_attempt
from r1hpc import exit_codes
from r1hpc.cluster.requeue import EXIT, HOLD, Facts, decide
from r1hpc.cluster.requeue.ledger import (
    blamed_nodes,
    close_record,
    made_progress,
    mark_carried_out,
    past_attempts,
    said,
)
from r1hpc.config import load_config
from r1hpc.config.cluster import RunConfig
from r1hpc.errors import R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

JOB_ID = "local"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class AttemptsEnded(R1hpcError):
    """The attempts ended without success."""


@dataclass(frozen=True)
class LocalTrain:
    """What the train job is under `--cluster local`: the same agents, the same decision, no scheduler."""

    run_dir: str
    until: str
    visible_gpus: str | None = field(default_factory=lambda: os.environ.get(VISIBLE_GPUS))
    """CUDA_VISIBLE_DEVICES where this was made; null: it is not set, and all are visible."""

    def __call__(self) -> int:
        """Return 0 on success. Raises AttemptsEnded with the cause."""
        self._see_gpus()
        directory = RunDir(Path(self.run_dir))
        budgets = load_config(directory.config).config.run
        while True:
            attempt, restart = _open_attempt(directory)
            code = run_attempt(directory, attempt, self.until)
            decision = decide(_facts(directory, attempt, restart, code, budgets))
            close_record(str(attempt.root), code, decision)
            # There is no queue: this loop itself is what follows.
            mark_carried_out(str(attempt.root), decision)
            print(f"attempt {attempt.root.name}: exit code {code}, {decision.cause}: {decision.reason}", flush=True)
            if code == exit_codes.SUCCESS:
                return code
            # Someone asked this very process to stop: there is no scheduler that could want it back.
            if decision.action in (EXIT, HOLD) or code == exit_codes.STOP_REQUESTED:
                told = "; ".join(filter(None, (decision.reason, said(str(attempt.root)))))
                raise AttemptsEnded(f"{decision.cause}: {told} (exit code {code})")

    def _see_gpus(self) -> None:
        """submitit's local executor hides all GPUs from whoever asked it for none, and knows no names but numbers."""
        if self.visible_gpus is None:
            os.environ.pop(VISIBLE_GPUS, None)
        else:
            os.environ[VISIBLE_GPUS] = self.visible_gpus


def _open_attempt(directory: RunDir) -> tuple[AttemptDir, int]:
    """Make the next attempt's directory and begin.json."""
    restart = sum(1 for path in directory.attempts.glob(f"{JOB_ID}-r*") if path.is_dir())
    attempt = directory.attempt(JOB_ID, restart)
    for folder in (attempt.logs, attempt.facts):
        folder.mkdir(parents=True)
    record = {"job_id": JOB_ID, "restart": restart, "started": time.time(), "end_time": None}
    publish_json(attempt.begin, record)
    return attempt, restart


def _facts(directory: RunDir, attempt: AttemptDir, restart: int, code: int, budgets: RunConfig) -> Facts:
    return Facts(
        exit_code=code,
        done=directory.done.exists(),
        restart=restart,
        job_state="RUNNING",
        restarts_now=restart,
        seconds_left=None,
        lead_s=0,
        progress=made_progress(str(attempt.root)),
        blamed=blamed_nodes(str(attempt.root)),
        past=past_attempts(str(directory.root), str(attempt.root)),
        max_crashes=budgets.max_crashes,
        max_interruptions=budgets.max_interruptions,
    )
