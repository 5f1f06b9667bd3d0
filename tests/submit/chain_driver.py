"""Submits a chain of three small stages; run against the private Slurm by test_submit_slurm.py.

python -m tests.submit.chain_driver RUN_ROOT all-well | first-fails | third-unloadable
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.config import load_config
from r1hpc.rundir import RunDir
from r1hpc.submit.parameters import HOME
from r1hpc.submit.pipeline import submit_chain
from r1hpc.submit.requests import StageJob, Submission
from r1hpc.submit.stages import Stage


@dataclass(frozen=True)
class Touch:
    """Writes the names of the files that it sees, so that the order of stages can be read off."""

    root: str
    stage: str
    index: int
    fail: bool

    def __call__(self) -> None:
        folder = Path(self.root)
        seen = sorted(path.name for path in folder.glob("*.seen"))
        if self.fail:
            raise RuntimeError(f"{self.stage} fails on purpose")
        (folder / f"{self.stage}-{self.index}.seen").write_text("\n".join(seen), encoding="utf-8")


@dataclass(frozen=True)
class SmallStage(Stage):
    """A stage whose job is Touch."""

    fail: bool = False
    unloadable: bool = False

    def load_job(self) -> Callable[..., Callable[[], Any]]:
        if self.unloadable:
            raise RuntimeError("no such job")
        return lambda root, index: Touch(root, self.name, 0 if index in ("bring-up", "end") else index, self.fail)


def main() -> None:
    """Submit, print the job ids."""
    root, mode = Path(sys.argv[1]), sys.argv[2]
    overrides = [f"run.root={root}", "cast.num_tasks=3", "convert.num_tasks=2", "hosts.num_nodes=1"]
    config = load_config(HOME / "tests" / "pipeline.yaml", overrides=overrides).config
    directory = RunDir(root)
    for folder in (directory.logs, directory.sbatch, directory.submitit):
        folder.mkdir(parents=True, exist_ok=True)
    submission = Submission(config, "chain-test", directory, "stamp", 60, "requeue")
    jobs = [_job(submission, name, mode) for name in ("cast", "convert", "train")]
    # The agents' shell lines are another test's; here only order, arrays and dependencies count.
    bare = {"setup": jobs[0].parameters["setup"], "teardown": ["exit $?"]}
    jobs[-1] = replace(jobs[-1], parameters=jobs[-1].parameters | bare)
    for job in submit_chain(jobs, directory, SlurmClient(), run_id="chain-test"):
        print(job.stage, job.job_id, job.num_tasks)


def _job(submission: Submission, name: str, mode: str) -> StageJob:
    fail = mode == "first-fails" and name == "cast"
    unloadable = mode == "third-unloadable" and name == "train"
    stage = SmallStage(
        name, "unused:unused", lambda config: False, lambda config: None, fail=fail, unloadable=unloadable
    )
    return submission.job(stage)


if __name__ == "__main__":
    main()
