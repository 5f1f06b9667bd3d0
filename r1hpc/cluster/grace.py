"""How long an attempt may go on once Slurm has asked it to stop.

What asks, and what then ends the job, in the order of what comes:
    time limit       USR1 (--signal) its lead before the limit; TERM at the limit; KILL after KillWait
    preemption       TERM at once, to the steps alone; TERM again after GraceTime, to all; KILL after KillWait.
                     The first is USR1 with preempt_send_user_signal. Without a GraceTime the first TERM is the last.
    scancel          TERM; KILL after KillWait. The signal is a preemption's, so that Slurm has to be asked (job_word)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DEFAULT_KILL_WAIT_S = 30.0
"""Slurm's own default, where nobody said otherwise."""
SIGNAL_SLACK_S = 60.0
"""How much earlier than asked Slurm may send the signal of --signal: sbatch(1)."""
MARGIN_S = 2.0
"""Of a grace time, for the agents to leave in order."""


@dataclass(frozen=True)
class Grace:
    """What is known of the allocation's end."""

    end_time: float | None
    """Of the time limit, Unix time; None when unknown."""
    lead_s: float
    """How long before it the signal of --signal was asked for."""
    grace_s: float
    """GraceTime of the partition; 0 where there is none, or nobody knows."""
    kill_wait_s: float

    @property
    def hurry_s(self) -> float:
        """At the last TERM the attempt leaves within a third of KillWait: the teardown needs the rest."""
        return self.kill_wait_s / 3

    def deadline(self, signal_name: str, now: float) -> float:
        """Unix time by which the driver has to be gone after a first request, by the signal that came."""
        if signal_name == "SIGUSR1" and self.end_time is not None:
            left_s = self.end_time - now
            if 0 <= left_s <= self.lead_s + SIGNAL_SLACK_S:
                return self.end_time - MARGIN_S
        if self.grace_s <= 0:
            return now + self.hurry_s
        return now + max(self.grace_s - MARGIN_S, 0.0)


def read_grace(begin: Path, run: Path) -> Grace:
    """From begin.json, which the batch host wrote, and run.json; what is missing is taken for Slurm's default."""
    opened, settings = (json.loads(path.read_text(encoding="utf-8")) for path in (begin, run))
    kill_wait_s = opened.get("kill_wait_s")
    return Grace(
        end_time=opened.get("end_time"),
        lead_s=float(settings.get("signal_lead_s", 0)),
        grace_s=float(opened.get("grace_s") or 0),
        kill_wait_s=DEFAULT_KILL_WAIT_S if kill_wait_s is None else float(kill_wait_s),
    )
