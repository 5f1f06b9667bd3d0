"""What Slurm says of the job once a TERM has come: whether it is preempted, with a grace time, or simply ended."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from r1hpc.cluster.requeue.texts import is_preempted, parse_job, parse_time

_TIMEOUT_S = 5.0
_ENDING = frozenset({"COMPLETING", "CANCELLED", "TIMEOUT", "PREEMPTED"})


@dataclass(frozen=True)
class JobWord:
    """Slurm's word."""

    state: str
    """JobState"""
    preempted_at: float | None
    """Unix time from which the grace time counts; None where this start of the job is not preempted."""

    @property
    def is_ending(self) -> bool:
        """Whether nothing but KillWait is left."""
        return self.state in _ENDING


def read_job(text: str) -> JobWord | None:
    """From `scontrol show job -o` with standard times; None where that shows no job."""
    job = parse_job(text)
    if "JobState" not in job:
        return None
    return JobWord(job["JobState"], parse_time(job["PreemptTime"]) if is_preempted(job) else None)


class JobQuestion:
    """Asks once, in a thread: a controller that does not answer holds up no beat."""

    def __init__(self, job_id: str, environment: Mapping[str, str]) -> None:
        """Of a `job_id` that is none of Slurm's nothing is ever heard."""
        self._job_id = job_id
        self._environment = dict(environment) | {"SLURM_TIME_FORMAT": "standard"}
        self._asked = re.fullmatch(r"\d+(_\d+)?", job_id) is None
        self._word: JobWord | None = None

    def ask(self) -> None:
        """Ask, unless that was done already."""
        if not self._asked:
            self._asked = True
            threading.Thread(target=self._ask, daemon=True, name="job-question").start()

    def take(self) -> JobWord | None:
        """The answer, once."""
        word, self._word = self._word, None
        return word

    def _ask(self) -> None:
        command = ["scontrol", "show", "job", "-o", self._job_id]
        try:
            # Its exit code may have gone to the supervisor, which reaps every child.
            done = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return  # a container has no scontrol, a lost controller no answer: the signals alone have to do
        self._word = read_job(done.stdout)
