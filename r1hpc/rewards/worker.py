"""The process that grades: one answer at a time, until it is killed or the pool hangs up."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import traceback
from pathlib import Path
from types import FrameType

from r1hpc.rewards.custom import call_custom, load_custom
from r1hpc.rewards.frames import HEADER_BYTES, Message, body_bytes, frame, unpack
from r1hpc.rewards.kinds import grader_of, is_custom

_PR_SET_PDEATHSIG = 1
_DETAIL_CHARACTERS = 1_000
_READY = frame({"outcome": "graded", "values": [], "detail": ""})
_OUT_OF_MEMORY = frame({"outcome": "memory", "values": [], "detail": ""})
"""Made beforehand: there may be no memory left to make it."""


def die_with_parent(parent: int, by: int = signal.SIGKILL) -> None:
    """Get this signal when the thread that started this process ends; leave at once if it already has.

    parent: pid of the process that started this one.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, by) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def outlive_signals_to_all() -> None:
    """Go on where Slurm or a terminal signals every process of a job: the owner of the pool decides what that means.

    A handler and not SIG_IGN, which programs that a reward function starts would inherit; its forks end as usual.
    """
    process = os.getpid()

    def ignore_unless_forked(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, ignore_unless_forked)


def limit_memory(memory_mb: int) -> None:
    """Let this process map that much more than it has now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def serve(channel: socket.socket) -> None:
    """Say that it is there, then answer until the other end is closed, or memory has run out once."""
    channel.sendall(_READY)
    worker = os.getpid()
    with channel.makefile("rb") as questions:
        while len(header := questions.read(HEADER_BYTES)) == HEADER_BYTES:
            try:
                reply = frame(_grade(unpack(questions.read(body_bytes(header)))))
                if os.getpid() != worker:
                    os._exit(0)  # a function of the user forked and returned twice: its child must not answer too
            except MemoryError:
                channel.sendall(_OUT_OF_MEMORY)
                return  # the heap may be in pieces
            channel.sendall(reply)


def _grade(request: Message) -> Message:
    try:
        return {"outcome": "graded", "values": _values(request), "detail": ""}
    except MemoryError:
        raise
    except BaseException as error:  # a function of the user may end in sys.exit, or be cancelled by its own client
        lines = traceback.format_exception(error)
        return {"outcome": "error", "values": [], "detail": "".join(lines)[-_DETAIL_CHARACTERS:]}


def _values(request: Message) -> list[float]:
    kind, responses, label = request["kind"], request["responses"], request["label"]
    if not is_custom(kind):
        return [grader_of(kind)(response, label) for response in responses]
    function = load_custom(kind)
    if request["group"]:
        return call_custom(function, (responses, label, request["metadata"]), len(responses))
    return call_custom(function, (responses[0], label, request["metadata"]), None)
