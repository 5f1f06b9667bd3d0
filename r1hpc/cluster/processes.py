"""Processes as /proc shows them: who descends from whom, and which carry the mark of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN = "R1HPC_RUN"
"""Environment variable of every process of a run: its id."""
ATTEMPT = "R1HPC_ATTEMPT"
"""The attempt's directory."""
NODE = "R1HPC_NODE"
"""RUN-ID/ATTEMPT/HOST of everything that a node agent started: hosts may share a machine."""
_SHOWN = 80
"""Characters of a command in a message."""


@dataclass(frozen=True)
class MarkedProcess:
    """A process whose environment carries a run's mark."""

    pid: int
    run_id: str
    attempt: str | None
    node: str | None
    command: str
    """As ps shows it."""

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.command[:_SHOWN]}) of run {self.run_id}"


def marked_processes() -> Iterator[MarkedProcess]:
    """Every live process that carries R1HPC_RUN and whose environment we may read, but ourselves."""
    for pid in all_processes():
        if pid == os.getpid():
            continue
        environment = _environment(pid)
        if RUN in environment:
            yield MarkedProcess(pid, environment[RUN], environment.get(ATTEMPT), environment.get(NODE), _command(pid))


def processes_of_node(node: str) -> list[int]:
    """Pids of the live processes whose R1HPC_NODE is `node`."""
    return [process.pid for process in marked_processes() if process.node == node]


def descendants(root: int) -> list[int]:
    """Pids of the live processes below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for pid in all_processes():
        parent, state = _parent_and_state(pid)
        if state not in "ZX":
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = list(children.get(root, []))
    while queue:
        pid = queue.pop(0)
        found.append(pid)
        queue += children.get(pid, [])
    return found


def shared_memory_of(pid: int) -> list[Path]:
    """The files of /dev/shm that a process has mapped and that still have a name."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    mapped = {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}
    return [Path(name) for name in sorted(mapped) if not name.endswith(" (deleted)")]


def kill(pid: int, signal_number: int) -> None:
    """Send a signal to a process that may be gone already."""
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        return


def all_processes() -> list[int]:
    """Pids of all that can be seen from here."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parent_and_state(pid: int) -> tuple[int, str]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, "X"
    # The name stands in parentheses and may itself hold spaces and parentheses.
    state, parent, *_ = text.rpartition(")")[2].split()
    return int(parent), state


def _environment(pid: int) -> dict[str, str]:
    """A zombie's is empty; another user's cannot be read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    if f"{RUN}=" not in text:
        return {}
    return {name: value for name, equals, value in (line.partition("=") for line in text.split("\0")) if equals}


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except OSError:
        return "?"
    return " ".join(words) or "?"
