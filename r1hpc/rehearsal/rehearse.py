"""`python -m r1hpc.rehearsal rehearse CONFIG`: the pipeline on a private Slurm, or on this bare host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from r1hpc.config import load_config
from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import ClusterSpec
from r1hpc.rehearsal.version import SLURM_PACKAGES, SLURM_PROGRAMS, missing_programs

TIMEOUT_S = 1800


def rehearse(config: Path, directory: Path, options: Sequence[str] = ()) -> int:
    """Submit `config` as far as the pipeline exists and wait for it; returns submit's exit code.

    A cluster that is up in `directory` is used and left up; otherwise one is made for this and ended after it.
    """
    submit = [sys.executable, "-m", "r1hpc.submit", str(config), "--wait", *_stages(), *options]
    missing = missing_programs(SLURM_PROGRAMS)
    if missing:
        print(f"no private Slurm: {', '.join(missing)} not installed (as root: apt-get install {SLURM_PACKAGES})")
        print("rehearsing on this host without it", flush=True)
        return subprocess.run([*submit, "--cluster", "local"], timeout=TIMEOUT_S, check=False).returncode
    submit += ["--cluster", "slurm"]
    try:
        return _run(RehearsalCluster.attach(directory), submit)
    except RehearsalError:
        pass  # none is up
    hosts = load_config(config).config.hosts
    cluster = RehearsalCluster.up(ClusterSpec(directory=directory, nodes=hosts.num_nodes))
    print(f"private Slurm: {hosts.num_nodes} nodes idle in {cluster.up_s:.1f} s ({cluster.kind})", flush=True)
    try:
        return _run(cluster, submit)
    finally:
        cluster.down()


def _stages() -> list[str]:
    """How far the pipeline exists in this version."""
    return ["--stage", "cast", "--stage", "convert", "--stage", "preflight"]


def _run(cluster: RehearsalCluster, command: Sequence[str]) -> int:
    process = cluster.popen(command)
    try:
        return process.wait(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.terminate()
