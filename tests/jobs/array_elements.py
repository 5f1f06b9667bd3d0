"""The elements of a cast or convert array on a private Slurm: their states, and one of them held still."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from r1hpc.cluster.requeue import parse_job
from r1hpc.rehearsal.cluster import RehearsalCluster

ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


def wait_until(ready: Callable[[], object], deadline_s: float, what: Callable[[], object]) -> None:
    """Wait; `what` is said when it takes longer."""
    end = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < end, f"not so after {deadline_s:g} s: {what()}"
        time.sleep(0.05)


def element(cluster: RehearsalCluster, job: str, index: int) -> dict[str, str]:
    """What scontrol says of one element."""
    return parse_job(cluster.run(["scontrol", "show", "job", "-o", f"{job}_{index}"], check=True).stdout)


def wait_for_end(cluster: RehearsalCluster, job: str, index: int, deadline_s: float = 120) -> dict[str, str]:
    """Wait until an element has ended for good."""
    wait_until(
        lambda: element(cluster, job, index)["JobState"] in ENDED, deadline_s, lambda: element(cluster, job, index)
    )
    return element(cluster, job, index)


@contextmanager
def held_in_the_middle(cluster: RehearsalCluster, job: str, index: int) -> Iterator[None]:
    """One element's first attempt, its worker stopped within the file that it writes, until the attempt is killed.

    As a file system that does not answer for a while: the writer is there, and does not move. Slurm continues the
    processes of a job before it signals them, so the worker is stopped again and again.
    """
    worker = _find_worker(cluster, job, index)
    over = threading.Event()

    def hold() -> None:
        with suppress(ProcessLookupError):
            while not over.wait(0.005):
                os.kill(worker, signal.SIGSTOP)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)


def _find_worker(cluster: RehearsalCluster, job: str, index: int, deadline_s: float = 60) -> int:
    """The pid of a worker of the element that has a temporary file open; it is stopped."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        for task in [pid for pid in cluster.processes() if _is_task(pid, job, index)]:
            while _exists(task):
                for child in _children(task):
                    os.kill(child, signal.SIGSTOP)
                    if _writes(child):
                        return child
                    os.kill(child, signal.SIGCONT)
                time.sleep(0.001)
        time.sleep(0.02)
    raise AssertionError(f"no worker of {job}_{index} was seen writing within {deadline_s:g} s")


def _is_task(pid: int, job: str, index: int) -> bool:
    """Whether this is the element's Python process: its parent is Slurm's, those of its workers are not."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
        parent = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
        above = Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return False
    of_element = {f"SLURM_ARRAY_JOB_ID={job}".encode(), f"SLURM_ARRAY_TASK_ID={index}".encode()} <= set(environment)
    return of_element and program.rpartition(b"/")[2].startswith(b"python") and above.startswith(b"slurmstepd")


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _writes(pid: int) -> bool:
    """Whether it has a temporary file open that holds something."""
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(link).endswith(".tmp") and os.stat(link).st_size > 0:
                return True
    except OSError:
        pass
    return False
