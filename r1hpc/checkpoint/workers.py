"""Independent units of work over forked processes, with one line of progress and the error of the first that fails."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from multiprocessing.sharedctypes import RawArray
from typing import Generic, TypeVar

import torch

from r1hpc.checkpoint.progress import Progress
from r1hpc.errors import CheckpointError, R1hpcError

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5
_END_S = 10.0
_LEAVE = signal.SIGUSR1
"""On it a worker removes what is unfinished, and leaves."""

U = TypeVar("U")
R = TypeVar("R")
Advance = Callable[[int], None]
"""Told the bytes done since the last call."""
Work = Callable[[U, Advance], R]


@dataclass(frozen=True)
class Done(Generic[R]):
    """What the units came to."""

    results: list[R]
    """In the order of the units."""
    peak_bytes: int
    """Resident memory of the largest worker at its peak."""


@dataclass
class _Worker:
    process: ForkProcess
    pipe: Connection
    unit: int | None = None


def run_units(units: Sequence[U], work: Work[U, R], num_workers: int, progress: Progress) -> Done[R]:
    """Call `work(unit, advance)` for every unit, `num_workers` at a time, each worker a forked process.

    A worker dies with this process. The first error ends the others and is raised here: an R1hpcError as itself,
    anything else as a CheckpointError with the traceback; a worker that was killed is named with its unit.
    """
    context = get_context("fork")
    count = min(num_workers, len(units))
    counters = RawArray(ctypes.c_longlong, max(count, 1))
    results: dict[int, R] = {}
    peak, following = 0, 0
    workers: list[_Worker] = []
    try:
        for slot in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, units, work, counters, slot, os.getpid()))
            process.start()
            theirs.close()
            workers.append(_Worker(process, ours))
        for worker in workers:
            following = _give(worker, following, len(units))
        while busy := [worker for worker in workers if worker.unit is not None]:
            for pipe in wait([worker.pipe for worker in busy], timeout=_POLL_S):
                worker = next(worker for worker in busy if worker.pipe is pipe)
                assert worker.unit is not None
                results[worker.unit], memory = _receive(worker, units)
                peak = max(peak, memory)
                following = _give(worker, following, len(units))
            progress.update(sum(counters))
    finally:
        _end(workers)
    progress.finish()
    return Done([results[index] for index in range(len(units))], peak)


def _give(worker: _Worker, following: int, count: int) -> int:
    """Hand the next unit to a worker; one that is not there any more is found out by `_receive`."""
    if following == count:
        worker.unit = None
        return following
    worker.unit = following
    with suppress(OSError):
        worker.pipe.send(following)
    return following + 1


def _receive(worker: _Worker, units: Sequence[U]) -> tuple[R, int]:
    try:
        outcome, memory = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        unit = units[worker.unit or 0]
        raise CheckpointError(
            f"the worker of {unit} was ended ({_ending(worker.process.exitcode)}); if memory ran out, give the task "
            "more (memory_gib) or fewer workers; run it again: what is published is kept"
        ) from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome[0], memory


def _end(workers: Sequence[_Worker]) -> None:
    """End every worker: the idle ones by word, the busy ones by a signal on which they remove what is unfinished."""
    for worker in workers:
        with suppress(OSError):
            if worker.unit is None:
                worker.pipe.send(None)
            elif worker.process.pid is not None:
                os.kill(worker.process.pid, _LEAVE)
    deadline = time.monotonic() + _END_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.pipe.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _serve(
    pipe: Connection,
    units: Sequence[U],
    work: Work[U, R],
    counters: ctypes.Array[ctypes.c_longlong],
    slot: int,
    parent: int,
) -> None:
    """The life of a worker: units by number from the pipe until it is closed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)  # it died before the line above
    # Ctrl-C and Slurm's TERM reach all of us. On the first the parent ends the work; the second begins the grace of a
    # preemption, and a task that left by itself within it would count as failed and not come back.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(_LEAVE, lambda number, frame: sys.exit(128 + number))
    # The workers are what fills the cores: threads of their own, one a core in each, would wait for each other.
    torch.set_num_threads(1)

    def advance(size_bytes: int) -> None:
        counters[slot] += size_bytes

    while True:
        try:
            index = pipe.recv()
        except (EOFError, OSError):
            return
        if index is None:
            return
        outcome: tuple[R] | BaseException
        try:
            outcome = (work(units[index], advance),)
        except R1hpcError as error:
            outcome = error
        except Exception:
            outcome = CheckpointError(f"{units[index]}: {traceback.format_exc()}")
        pipe.send((outcome, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
