"""A train job on a private Slurm, its batch script written here: the four steps of an attempt and nothing else."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.config import load_config
from r1hpc.config.dump import dump_config
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rundir import AttemptDir, RunDir

HOME = Path(__file__).resolve().parents[2]

_SCRIPT = """#!/bin/bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --gpus-per-node=2 --no-requeue --time=5 --output={run}/logs/job.log
export PYTHONPATH={home} R1HPC_RUN_DIR={run} R1HPC_HOME={home} R1HPC_PYTHON={python}
. {home}/sbatch/hooks.sh
r1hpc_begin
r1hpc_preflight 60 --mpi=pmi2 --nodes={nodes} --ntasks={nodes}
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --cpu-bind=none --wait=60 \\
  {python} -m jobs.train {run} --until bring-up
rc=$?
echo $rc > {run}/rc
exit $rc
"""


@dataclass
class SlurmJob:
    """One submitted attempt."""

    cluster: RehearsalCluster
    run: RunDir
    job_id: str
    submitted: float

    @classmethod
    def submit(cls, cluster: RehearsalCluster, root: Path, nodes: int, *overrides: str) -> SlurmJob:
        """Make a run directory and submit its attempt; no requeue, so that the first end is the end."""
        run = RunDir(root)
        for folder in (run.logs, run.attempts):
            folder.mkdir(parents=True)
        settings = [f"run.root={root.parent}", f"hosts.num_nodes={nodes}", *overrides]
        config = load_config(HOME / "tests" / "pipeline.yaml", overrides=settings).config
        run.config.write_text(dump_config(config), encoding="utf-8")
        run.run.write_text(json.dumps({"run_id": f"slurm-{root.name}"}), encoding="utf-8")
        script = root / "job.sh"
        script.write_text(_SCRIPT.format(nodes=nodes, run=root, home=HOME, python=sys.executable), encoding="utf-8")
        done = cluster.run(["sbatch", "--parsable", str(script)], cwd=HOME, check=True, timeout_s=30)
        return cls(cluster, run, done.stdout.strip(), time.monotonic())

    @property
    def attempt(self) -> AttemptDir:
        return self.run.attempt(self.job_id, 0)

    @property
    def outcome(self) -> dict[str, Any]:
        """outcome.json"""
        record: dict[str, Any] = json.loads(self.attempt.outcome.read_text(encoding="utf-8"))
        return record

    def wait(self, ready: Callable[[], bool], deadline_s: float) -> float:
        """Wait until `ready`; returns the seconds since the job was submitted. Fails with the job's log."""
        deadline = time.monotonic() + deadline_s
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"not so after {deadline_s:g} s:\n{self.log}")
            time.sleep(0.1)
        return time.monotonic() - self.submitted

    def exit_code(self, deadline_s: float = 120) -> int:
        """What the main srun returned."""
        code = self.run.root / "rc"
        self.wait(code.exists, deadline_s)
        return int(code.read_text(encoding="utf-8"))

    @property
    def log(self) -> str:
        """The batch script's and all tasks' output."""
        path = self.run.logs / "job.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def started(self, name: str) -> bool:
        """Whether an agent has begun a process of this name, as `node02-ray`."""
        return (self.attempt.logs / f"{name}.log").exists()
