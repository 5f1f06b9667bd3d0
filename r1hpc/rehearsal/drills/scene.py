"""What a drill plays on: a private Slurm, one run on it, and what can be seen of the run from outside."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.cluster.processes import MarkedProcess, marked_processes
from r1hpc.cluster.requeue import parse_job
from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rundir import AttemptDir, RunDir

HOME = Path(__file__).resolve().parents[3]
_PAUSE_S = 0.1
_QUERY_S = 30
_SUBMIT_S = 120
_LOG_LINES = 25

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"})


class DrillError(R1hpcError):
    """What a drill is to prove did not hold."""


@dataclass
class Scene:
    """One run on one private Slurm. `submit` comes first."""

    cluster: RehearsalCluster
    config: Path
    directory: RunDir
    settings: Sequence[str]
    """KEY=VALUE of every submit."""
    num_nodes: int
    num_rollout: int
    stage: str = "train"
    """Or preflight: the attempt ends after the bring-up, and the moments of a drill lie before that."""
    job_id: str = ""

    def submit(self, *settings: str, options: Sequence[str] = ()) -> str:
        """Submit the run, or submit it again; returns the id of its job."""
        words = [word for setting in (*self.settings, *settings) for word in ("--set", setting)]
        command = [sys.executable, "-m", "r1hpc.submit", str(self.config), "--cluster", "slurm", "--stage", self.stage]
        done = self.cluster.run([*command, *words, *options], cwd=HOME, timeout_s=_SUBMIT_S)
        if done.returncode != 0:
            raise DrillError(f"the run could not be submitted:\n{done.stdout}{done.stderr}")
        self.job_id = self.record(self.directory.jobs)["jobs"][0]["job_id"]
        return self.job_id

    def wait(self, what: str, ready: Callable[[], object], deadline_s: float) -> float:
        """Wait until `ready`; returns the seconds that it took. Raises DrillError with the ends of the run's logs."""
        started = time.monotonic()
        while not ready():
            if time.monotonic() - started > deadline_s:
                raise DrillError(f"not within {deadline_s:g} s: {what}\n{self.last_words()}")
            time.sleep(_PAUSE_S)
        return time.monotonic() - started

    def job(self, job_id: str | None = None) -> dict[str, str]:
        """What Slurm says of a job; {} when it has forgotten it."""
        done = self.cluster.run(["scontrol", "show", "job", "-o", job_id or self.job_id], timeout_s=_QUERY_S)
        return parse_job(done.stdout)

    def wait_for_end(self, deadline_s: float, wanted: str = "COMPLETED") -> None:
        """Wait until Slurm has ended the job for good, in the state that is wanted."""
        self.wait(f"job {self.job_id} ends", lambda: self.job().get("JobState") in ENDED or self._stuck(), deadline_s)
        if (state := self.job().get("JobState")) != wanted:
            reason = self.job().get("Reason")
            raise DrillError(f"job {self.job_id} is {state} ({reason}), not {wanted}\n{self.last_words()}")

    def attempts(self) -> list[AttemptDir]:
        """Those that have begun, in their order."""
        found = [AttemptDir(path) for path in self.directory.attempts.glob("*") if (path / "begin.json").exists()]
        return sorted(found, key=lambda attempt: float(self.record(attempt.begin)["started"]))

    def causes(self) -> list[str]:
        """How the attempts ended, in their order; `open` is one that has not."""
        return [str(self.record(attempt.end).get("cause", "open")) for attempt in self.attempts()]

    def progress(self) -> dict[str, Any]:
        """What the driver of the newest attempt says that it does now; {} while there is none."""
        attempts = self.attempts()
        return self.record(attempts[-1].progress) if attempts else {}

    def iterations(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl."""
        return self.lines(self.directory)

    @staticmethod
    def lines(run: RunDir) -> list[dict[str, Any]]:
        """The complete lines of a run's metrics.jsonl; none while it is not there."""
        try:
            lines = run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def run_id(self) -> str:
        """R1HPC_RUN of its processes."""
        return str(self.record(self.directory.run)["run_id"])

    def processes(self, *words: str) -> list[MarkedProcess]:
        """Live processes of the run on all nodes, whose command line has all the words."""
        mine = [process for process in marked_processes() if process.run_id == self.run_id]
        return [process for process in mine if all(word in process.command for word in words)]

    def hold(self, *words: str) -> AbstractContextManager[None]:
        """Stop its processes whose command line has all the words while the context lasts: at most some 15 s.

        Ray takes a process for dead that does not answer for 20 s.
        """
        return _held([process.pid for process in self.processes(*words)])

    @staticmethod
    def record(path: Path) -> dict[str, Any]:
        """A JSON object, {} when the file is not there."""
        try:
            value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return value
        except FileNotFoundError:
            return {}

    def last_words(self) -> str:
        """The ends of the batch script's log and the driver's, for a person."""
        drivers = [path for attempt in self.attempts()[-1:] for path in attempt.logs.glob("*-driver.log")]
        texts = []
        for path in [*sorted(self.directory.logs.glob("*.log"))[-2:], *drivers]:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            texts += [f"last lines of {path}:", *(f"  {line}" for line in lines)]
        return "\n".join(texts)

    def _stuck(self) -> bool:
        return "held" in self.job().get("Reason", "").lower()


@contextmanager
def _held(pids: Sequence[int]) -> Iterator[None]:
    try:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # the attempt is over
                os.kill(pid, signal.SIGCONT)
