"""An attempt under mpirun or mpiexec, on the hosts of a file that somebody wrote: no scheduler, the same steps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.identity import Identity, identify
from jobs.preflight import own_node, rank_of
from r1hpc import exit_codes
from r1hpc.cluster.hostfile import Hostfile, launch_commands, read_hostfile, require
from r1hpc.cluster.hosts import Node
from r1hpc.cluster.mpi_child import MpiChild
from r1hpc.cluster.preflight_rank import run_rank
from r1hpc.config import load_config
from r1hpc.errors import HostfileError, PreflightError, R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

_MPI_S = 120.0


@dataclass(frozen=True)
class Opened:
    """An attempt whose preflight has passed."""

    run: RunDir
    attempt: AttemptDir
    host: str
    """This process's."""


def open_attempt(target: Path, hostfile: Path) -> Opened:
    """Make the attempt on rank 0, preflight on every rank. `target`: a run directory or a configuration.

    Raises PreflightError on every rank when the run must not start, or when the launch is not one process a host.
    """
    identity = identify(os.environ)
    if identity is None:
        raise PreflightError(_how_to(target, hostfile))
    with MpiChild() as world:
        deadline = time.monotonic() + _MPI_S
        world.begin(identity.size, deadline)
        opened = world.broadcast(_make_attempt(target, hostfile, identity) if identity.rank == 0 else None, deadline)
        if "problem" in opened:
            raise PreflightError(opened["problem"])
        run, attempt = RunDir(Path(opened["run"])), AttemptDir(Path(opened["attempt"]))
        nodes = [Node(**node) for node in opened["nodes"]]
        node = own_node(identity, nodes)
        code = run_rank(run, attempt, rank_of(identity, os.environ), node, world)
        verdict = world.broadcast(code, time.monotonic() + _MPI_S)
    if verdict != exit_codes.SUCCESS:
        raise PreflightError(f"the preflight did not pass: {attempt.report}")
    return Opened(run, attempt, node.name)


def _make_attempt(target: Path, hostfile: Path, identity: Identity) -> dict[str, object]:
    """Rank 0: the run, the attempt's directory and its begin.json; {"problem": text} when that fails."""
    try:
        run = RunDir(target.resolve()) if target.is_dir() else _prepared(target)
        hosts = load_config(run.config).config.hosts
        written = read_hostfile(hostfile)
        require(written, hosts.num_nodes, hosts.gpus_per_node)
        refuse_localhost(written)
        if identity.size != hosts.num_nodes:
            raise PreflightError(
                f"{identity.launcher} started {identity.size} processes, but hosts.num_nodes = {hosts.num_nodes}: "
                + _how_to(target, hostfile)
            )
    except (R1hpcError, OSError) as error:
        return {"problem": str(error)}
    nodes = [{"name": host.name, "address": host.name} for host in written.hosts[: hosts.num_nodes]]
    attempt = run.attempt(f"mpi-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}", 0)
    for folder in (attempt.facts, attempt.logs):
        folder.mkdir(parents=True)
    begin = {"job_id": identity.launcher, "restart": 0, "started": time.time(), "end_time": None, "nodes": nodes}
    publish_json(attempt.begin, begin)
    return {"run": str(run.root), "attempt": str(attempt.root), "nodes": nodes}


def refuse_localhost(hostfile: Hostfile) -> None:
    """Raise HostfileError for a name that is another machine on every host; Ray would replace it by its own guess."""
    problems = [
        f"{hostfile.path}:{host.line}: {host.name} is a different machine on every host; write its name or its address "
        "on the fabric (for a rehearsal on one machine: 127.0.0.10 and up)"
        for host in hostfile.hosts
        if host.name in ("localhost", "127.0.0.1", "::1")
    ]
    if problems:
        raise HostfileError("\n".join(problems))


def _prepared(config: Path) -> RunDir:
    """The run directory of a configuration, made by the same command that submits it."""
    command = [sys.executable, "-m", "r1hpc.submit", str(config), "--prepare"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_MPI_S / 2)
    if done.returncode != 0:
        raise PreflightError(done.stderr.strip())
    print(done.stderr, end="", file=sys.stderr, flush=True)  # what the plan says of this configuration
    return RunDir(Path(done.stdout.strip().splitlines()[-1]))


def _how_to(target: Path, hostfile: Path) -> str:
    try:
        written = read_hostfile(hostfile)
    except R1hpcError as error:
        return str(error)
    program = f"python -m jobs.train {target} --hostfile {hostfile}"
    return "it takes one process a host:\n" + launch_commands(written, len(written.hosts), program)
