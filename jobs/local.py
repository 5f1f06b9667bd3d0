"""An attempt without Slurm: preflight and agents of all hosts on this one machine, each host a loopback address.

python -m jobs.local RUN --attempt ATTEMPT --until bring-up
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from r1hpc import exit_codes
from r1hpc.cluster.hostfile_forms import write_hydra
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.hydra import hydra_mpiexec
from r1hpc.cluster.node import ROLL_CALL_S
from r1hpc.cluster.processes import ATTEMPT, RUN
from r1hpc.config import load_config
from r1hpc.config.cluster import HostsConfig
from r1hpc.errors import R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_FIRST_ADDRESS = 10
_LEAVE_S = ROLL_CALL_S + 15.0
"""Agents leave together; one that never met the head waits for it as long as the roll call lasts."""
_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


def loopback_hosts(hosts: HostsConfig) -> list[ClusterHost]:
    """local01 at 127.0.0.10, local02 at 127.0.0.11, ..."""
    return [
        ClusterHost(f"local{index + 1:02d}", f"127.0.0.{_FIRST_ADDRESS + index}", hosts.gpus_per_node)
        for index in range(hosts.num_nodes)
    ]


def run_attempt(run: RunDir, attempt: AttemptDir, until: str) -> int:
    """Preflight, then one agent to a host as child processes; returns the attempt's exit code.

    USR1 and TERM are handed on to the agents. Main thread only: it installs signal handlers.
    """
    hosts = load_config(run.config).config.hosts
    cluster = loopback_hosts(hosts)
    for folder in (attempt.facts, attempt.logs):
        folder.mkdir(parents=True, exist_ok=True)
    _write_begin(attempt, cluster)
    run_id = json.loads(run.run.read_text(encoding="utf-8"))["run_id"]
    environment = dict(os.environ) | {RUN: run_id, ATTEMPT: str(attempt.root)}
    with _ForwardedSignals() as forwarded:
        code = _preflight(run, attempt, cluster, hosts.preflight_timeout_s, environment, forwarded)
        if forwarded.received:
            return exit_codes.STOP_REQUESTED  # whatever the preflight says: who asked for the end wants no next attempt
        if code != exit_codes.SUCCESS:
            return code
        agents = [_start_agent(run, attempt, host, until, environment) for host in cluster]
        forwarded.to(agents)
        code = _wait(agents)
        return exit_codes.STOP_REQUESTED if forwarded.received and code != exit_codes.SUCCESS else code


def _write_begin(attempt: AttemptDir, cluster: Sequence[ClusterHost]) -> None:
    """Name the nodes in begin.json; who opened the attempt has written the rest."""
    try:
        record = json.loads(attempt.begin.read_text(encoding="utf-8"))
    except FileNotFoundError:
        record = {"job_id": "local", "restart": 0, "started": time.time(), "end_time": None}
    nodes = [{"name": host.name, "address": host.address} for host in cluster]
    publish_json(attempt.begin, record | {"nodes": nodes})


def _preflight(
    run: RunDir,
    attempt: AttemptDir,
    cluster: Sequence[ClusterHost],
    timeout_s: float,
    environment: dict[str, str],
    forwarded: _ForwardedSignals,
) -> int:
    """All ranks through MPICH's mpiexec, which starts them here: no ssh to a loopback address."""
    one_each = [ClusterHost(host.name, host.address, 1) for host in cluster]
    machinefile = attempt.root / "preflight.hydra"
    write_hydra(one_each, machinefile)
    command = [hydra_mpiexec(), "-launcher", "fork", "-f", str(machinefile), "-ppn", "1", "-n", str(len(cluster))]
    command += [sys.executable, "-m", "jobs.preflight", str(run.root), str(attempt.root)]
    child = subprocess.Popen(command, env=environment, cwd=_home(), start_new_session=True, preexec_fn=_before_exec(()))
    forwarded.to([child])
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        logger.error("the preflight did not end within hosts.preflight_timeout_s = %g s", timeout_s)
        return exit_codes.PREFLIGHT_FAILED


def _start_agent(
    run: RunDir, attempt: AttemptDir, host: ClusterHost, until: str, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.train", str(run.root), "--attempt", str(attempt.root)]
    command += ["--host", host.name, "--until", until]
    with open(attempt.logs / f"{host.name}-agent.log", "ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=_home(),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The agent takes them in once it has its handlers: killed before, it would count as a lost node.
            preexec_fn=_before_exec(_STOP_SIGNALS),
        )


def _before_exec(blocked: Sequence[int]) -> Callable[[], None]:
    """Runs in the child: it is asked to stop when this process dies, however that happens."""
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # it has died already

    return prepare


def _wait(agents: Sequence[subprocess.Popen[bytes]]) -> int:
    """The head's exit code, once all agents are gone; a killed one counts as a lost node."""
    first_left: float | None = None
    while any(agent.poll() is None for agent in agents):
        if first_left is None and any(agent.poll() is not None for agent in agents):
            first_left = time.monotonic()
        if first_left is not None and time.monotonic() - first_left > _LEAVE_S:
            for agent in agents:
                agent.kill()
        time.sleep(0.1)
    head = agents[0].returncode
    return head if head >= 0 else exit_codes.NODE_LOST


def _home() -> Path:
    """The directory that holds jobs/ and r1hpc/."""
    return Path(__file__).resolve().parents[1]


class _ForwardedSignals:
    """Hands USR1 and TERM on to child processes while it is entered."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._children: Sequence[subprocess.Popen[bytes]] = ()

    def to(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        """From now on to these, and what came before too."""
        self._children = children
        for number in self.received:
            self._send(number)

    def __enter__(self) -> _ForwardedSignals:
        self._before = {number: signal.signal(number, self._handle) for number in _STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)


def main(argv: Sequence[str] | None = None) -> int:
    """One attempt by hand."""
    parser = argparse.ArgumentParser(prog="python -m jobs.local", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--attempt", type=Path, required=True, help="its directory, new or empty")
    parser.add_argument("--until", choices=("bring-up", "canary", "end"), default="end")
    arguments = parser.parse_args(argv)
    try:
        return run_attempt(RunDir(arguments.run), AttemptDir(arguments.attempt), arguments.until)
    except R1hpcError as error:
        print(error, file=sys.stderr)
        return exit_codes.INVALID


if __name__ == "__main__":
    sys.exit(main())
