"""Real attempts on loopback addresses, in a process of their own so that tests can signal and kill parts of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from r1hpc.cluster.leftovers import processes_of
from r1hpc.cluster.processes import MarkedProcess
from r1hpc.config import load_config
from r1hpc.config.dump import dump_config
from r1hpc.rundir import AttemptDir, RunDir

HOME = Path(__file__).resolve().parents[2]


BLOCKS = range(1800, 21000, 4800)
"""Of ports, below those of private Slurms and the tests' engines: enough for each place where three hosts may begin."""
_SPAN = 200
_ENOUGH = 400


@cache
def _port_block() -> tuple[int, socket.socket]:
    """A block that no other worker of these tests has; the claim goes with this process, however it ends."""
    for first in BLOCKS:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0r1hpc-tests-ports-{first}")
        except OSError:
            claim.close()
        else:
            return first, claim
    raise AssertionError(f"{len(BLOCKS)} processes have one block of ports each: run fewer workers")


def port_base() -> int:
    """The first of 400 ports on none of which this machine listens or talks right now, nor will another worker."""
    first, _ = _port_block()
    used = {int(line.split()[1].rpartition(":")[2], 16) for line in _connections()}
    for base in range(first, first + BLOCKS.step, _ENOUGH):
        if used.isdisjoint(range(base, base + _ENOUGH)):
            return base
    raise AssertionError(f"no {_ENOUGH} free ports between {first} and {first + BLOCKS.step}")


def _connections() -> list[str]:
    tables = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
    return [line for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]


def make_run(root: Path, *overrides: str) -> RunDir:
    """A run directory of tests/pipeline.yaml, as far as preflight and agents read one."""
    run = RunDir(root)
    run.attempts.mkdir(parents=True)
    settings = [f"run.root={root.parent}", f"hosts.port_base={_port_block()[0]}", f"hosts.port_span={_SPAN}"]
    config = load_config(HOME / "tests" / "pipeline.yaml", overrides=[*settings, *overrides]).config
    run.config.write_text(dump_config(config), encoding="utf-8")
    run.run.write_text(
        json.dumps({"run_id": f"test-{root.name}-{os.getpid()}-{time.time_ns()}", "config_hash": "a"}), encoding="utf-8"
    )
    return run


@dataclass
class LocalAttempt:
    """One attempt of jobs.local in a child process."""

    run: RunDir
    attempt: AttemptDir
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, run: RunDir, until: str = "bring-up") -> LocalAttempt:
        """Start preflight and agents."""
        attempt = run.attempt("local", 0)
        command = [sys.executable, "-m", "jobs.local", str(run.root), "--attempt", str(attempt.root), "--until", until]
        process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return cls(run, attempt, process)

    @property
    def run_id(self) -> str:
        return str(json.loads(self.run.run.read_text(encoding="utf-8"))["run_id"])

    @property
    def outcome(self) -> dict[str, Any]:
        """outcome.json"""
        record: dict[str, Any] = json.loads(self.attempt.outcome.read_text(encoding="utf-8"))
        return record

    def processes(self) -> list[MarkedProcess]:
        """What is alive of the run."""
        return processes_of(self.run_id)

    def agent(self, host: str) -> int:
        """The pid of a host's agent; its guardian is a fork of it, with the same command."""
        pids = [p.pid for p in self.processes() if p.node is None and f"--host {host} " in _command(p.pid)]
        (agent,) = [pid for pid in pids if _parent(pid) == self.process.pid]
        return agent

    def wait_for_children(self, *needles: str, deadline_s: float = 60) -> None:
        """Wait until an agent has started a process whose command holds each of the needles."""

        def all_started() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"the attempt ended before that:\n{self.process.communicate()[0]}")
            return all(self.children(needle) for needle in needles)

        self._wait(all_started, deadline_s)

    def children(self, *needles: str) -> list[int]:
        """Pids of what agents have started and whose command holds all the needles."""
        return [p.pid for p in self.started() if all(needle in _command(p.pid) for needle in needles)]

    def started(self) -> list[MarkedProcess]:
        """What agents have started and is alive."""
        return [process for process in self.processes() if process.node is not None]

    def finish(self, deadline_s: float = 90) -> int:
        """The exit code; the attempt's output goes to the test's."""
        output, _ = self.process.communicate(timeout=deadline_s)
        print(output)
        return self.process.returncode

    def wait_until_gone(self, deadline_s: float = 15) -> None:
        """Wait until nothing of the run is alive."""
        self._wait(lambda: not self.processes(), deadline_s)

    def _wait(self, ready: Callable[[], bool], deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while not ready():
            alive = "\n".join(map(str, self.processes()))
            assert time.monotonic() < deadline, f"not so after {deadline_s:g} s; alive:\n{alive}"
            time.sleep(0.05)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])
