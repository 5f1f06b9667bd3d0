"""What a run has left behind on this machine: processes by their mark, scratch directories by their owner's."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from r1hpc.cluster.processes import MarkedProcess, kill, marked_processes
from r1hpc.cluster.scratch import remove_scratch, scratch_of_run

_PAUSE_S = 0.05


def processes_of(run_id: str) -> list[MarkedProcess]:
    """Live processes of a run, our own parents and ourselves left out."""
    spared = _ancestors()
    return [process for process in marked_processes() if process.run_id == run_id and process.pid not in spared]


def processes_of_others(run_id: str) -> list[MarkedProcess]:
    """Live processes of other runs that their agents started."""
    return [process for process in marked_processes() if process.run_id != run_id and process.node is not None]


def end_earlier_attempts(run_id: str, attempt: Path, deadline_s: float = 10.0) -> list[MarkedProcess]:
    """Kill what earlier attempts of this very run have left, then remove their scratch; returns what was killed.

    Only processes that an agent of the run started (they carry its mark), never those of this attempt.
    """
    ended: dict[int, MarkedProcess] = {}
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        stale = [
            process
            for process in processes_of(run_id)
            if process.node is not None and process.attempt is not None and Path(process.attempt) != attempt
        ]
        if not stale:
            break
        for process in stale:
            ended[process.pid] = process
            kill(process.pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    for scratch, owner in scratch_of_run(run_id).items():
        if Path(owner) != attempt:
            remove_scratch(scratch)
    return list(ended.values())


def _ancestors() -> set[int]:
    chain, pid = set(), os.getpid()
    while pid > 0 and pid not in chain:
        chain.add(pid)
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            break
        pid = int(text.rpartition(")")[2].split()[1])
    return chain
