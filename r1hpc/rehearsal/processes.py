"""The processes of a private cluster, as /proc shows them.

A process belongs to a cluster when its environment carries the cluster's mark (daemons, clients, tasks), when it works
in the cluster's spool directory (slurmstepd overwrites its environment with its title), when such a process started it,
or when it lives in a network namespace that such a process has and we have not. None of it needs a record, so that
what a killed `up` has left behind is found too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.layout import Layout


@dataclass(frozen=True)
class ProcessId:
    """A process for good: its pid may be given to another one, its start time then differs."""

    pid: int
    started: int
    """Clock ticks after boot (field 22 of /proc/PID/stat)."""

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the identity of a process that was just started; one that is gone already counts as never alive."""
        stat = read_stat(pid)
        return cls(pid, stat.started if stat else 0)

    def alive(self) -> bool:
        """Whether the process still runs; a zombie does not."""
        stat = read_stat(self.pid)
        return stat is not None and stat.started == self.started and stat.state not in "ZX"

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive():
            try:
                os.kill(self.pid, signal_number)
            except ProcessLookupError:
                return


@dataclass(frozen=True)
class Stat:
    """What is used of /proc/PID/stat."""

    name: str
    state: str
    parent: int
    started: int


def read_stat(pid: int) -> Stat | None:
    """Return the state of a process, None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return Stat(name=name, state=fields[0], parent=int(fields[1]), started=int(fields[19]))


def network_namespace(pid: int | str = "self") -> str | None:
    """Return the name of a process's network namespace, e.g. `net:[4026531840]`; None when it cannot be read."""
    try:
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    except OSError:
        return None


def listens(pid: int, port: int) -> bool:
    """Whether someone listens on a TCP port in the network namespace of a process."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    listening = "0A"  # TCP_LISTEN
    return any(
        fields[3] == listening and int(fields[1].rpartition(":")[2], 16) == port for fields in map(str.split, lines)
    )


def cluster_processes(layout: Layout) -> dict[int, Stat]:
    """Return every live process of a cluster by pid; never the caller or a process that led to it."""
    members = process_family(lambda pid: not layout.marks.isdisjoint(environment(pid)) or works_in(pid, layout.spool))
    private_namespaces = {network_namespace(pid) for pid in members} - {network_namespace(), None}
    return members | process_family(lambda pid: network_namespace(pid) in private_namespaces)


def process_family(is_seed: Callable[[int], bool]) -> dict[int, Stat]:
    """Return the processes which `is_seed` accepts and all that they started; never the caller or its ancestors."""
    table = _process_table()
    spared = _ancestry(os.getpid(), table)
    seeds = {pid for pid in table if pid not in spared and is_seed(pid)}
    return {pid: table[pid] for pid in _with_descendants(seeds, table) - spared}


def environment(pid: int) -> set[str]:
    """Return the `NAME=value` entries that a process was started with; none when they cannot be read."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return set()
    return set(content.decode(errors="replace").split("\0"))


def works_in(pid: int, directory: Path) -> bool:
    """Whether the working directory of a process is `directory` or lies below it."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(directory)
    except OSError:
        return False


def end_all(find: Callable[[], Iterable[int]], deadline_s: float = 10) -> None:
    """Kill what `find` returns until it finds nothing; raise RehearsalError naming what outlives the deadline."""
    deadline = time.monotonic() + deadline_s
    empty_looks = 0
    # Twice: a process that is just being started may not yet show what it is known by.
    while empty_looks < 2:
        pids = list(find())
        empty_looks = 0 if pids else empty_looks + 1
        if time.monotonic() > deadline:
            names = ", ".join(f"{pid} ({stat.name}, state {stat.state})" for pid in pids if (stat := read_stat(pid)))
            raise RehearsalError(f"still there {deadline_s:g} s after SIGKILL: {names}; end them by hand, then `down`")
        for pid in pids:
            ProcessId.of(pid).kill()
        time.sleep(0.02)


def _process_table() -> dict[int, Stat]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return {pid: stat for pid in pids if (stat := read_stat(pid)) is not None and stat.state not in "ZX"}


def _ancestry(pid: int, table: dict[int, Stat]) -> set[int]:
    chain: set[int] = set()
    while pid in table:
        chain.add(pid)
        pid = table[pid].parent
    return chain


def _with_descendants(roots: set[int], table: dict[int, Stat]) -> set[int]:
    found = {pid for pid in roots if pid in table}
    while more := {pid for pid, stat in table.items() if stat.parent in found} - found:
        found |= more
    return found
