"""The ranks of a test as forked processes: megatron-core is imported once, in seconds, and not in every rank."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

GRACE_S = 2.0
"""For a rank to leave by itself once every rank has answered, or one has failed."""


def fork_ranks(work: Callable[[int], Result], ranks: int, deadline_s: float) -> list[Result]:
    """What `work(rank)` returns in each of so many processes; the first traceback of a rank is an AssertionError."""
    fork = multiprocessing.get_context("fork")
    pending: dict[Connection, int] = {}
    processes = []
    try:
        for rank in range(ranks):
            receiver, sender = fork.Pipe(duplex=False)
            process = fork.Process(target=_report, args=(work, rank, sender))
            process.start()
            processes.append(process)
            sender.close()
            pending[receiver] = rank
        return _answers(pending, ranks, deadline_s)
    finally:
        for process in processes:
            _end(process)


def join_gloo(rank: int, ranks: int, rendezvous: Path, deadline_s: float) -> None:
    """Make the process group of these ranks; they find each other through a file and talk over loopback."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks, timeout=timedelta(seconds=deadline_s)
    )


def _end(process: BaseProcess) -> None:
    """End a rank and what it started: megatron-core's writer has a manager process."""
    process.join(GRACE_S)
    process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.ident or 0, signal.SIGKILL)
    process.join()


def _answers(pending: dict[Connection, int], ranks: int, deadline_s: float) -> list[Result]:
    answers: dict[int, Result] = {}
    end = time.monotonic() + deadline_s
    while pending:
        ready = wait(list(pending), timeout=max(0.0, end - time.monotonic()))
        assert ready, f"after {deadline_s} s no answer from ranks {sorted(pending.values())} of {ranks}"
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = pending.pop(receiver)
            try:
                failed, answer = pickle.loads(receiver.recv_bytes())
            except EOFError:
                failed, answer = True, "ended without an answer"
            assert not failed, f"rank {rank}: {answer}"
            answers[rank] = answer
    return [answers[rank] for rank in range(ranks)]


def _report(work: Callable[[int], Result], rank: int, sender: Connection) -> None:
    os.setsid()
    # The parent's OpenMP threads do not exist after a fork; with one thread none is looked for.
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")
    try:
        # Plain pickle: the pipe's own would lend a tensor's memory, which ends with this process.
        answer = pickle.dumps((False, work(rank)))
    except BaseException:
        answer = pickle.dumps((True, traceback.format_exc()))
    sender.send_bytes(answer)
