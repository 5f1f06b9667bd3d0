"""What would surely fail on allocated hosts is told at submit: foreign commits, own code, the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.submit.__main__ import main
from r1hpc.submit.certain_failures import certain_failures
from r1hpc.submit.order import Options, take_order
from r1hpc.submit.parameters import HOME
from r1hpc.submit.prepare import prepare
from tests.checkpoint.saves import committed

PIPELINE = str(HOME / "tests/pipeline.yaml")


def failures(
    root: Path, *overrides: str, stage: str = "train", sweep: tuple[str, ...] = ()
) -> tuple[list[str], list[str]]:
    """Problems, and what was said."""
    said: list[str] = []
    options = Options(PIPELINE, overrides=[f"run.root={root}", *overrides], stages=[stage], sweep=sweep)
    return certain_failures(take_order(options, lambda line: None), said.append), said


def test_a_new_run_does_not_commit_where_another_has(tmp_path: Path) -> None:
    committed(tmp_path / "saved", 3)
    save = f"ckpt.save={tmp_path / 'saved'}"
    [problem], _ = failures(tmp_path / "runs", save)
    assert "iter_0000003 was committed by run r1, and this run has not begun yet" in problem
    assert failures(tmp_path / "runs", save, stage="preflight") == ([], [])
    assert failures(tmp_path / "runs", save, sweep=("optimizer.lr=1e-6,2e-6",)) == ([], [])


def test_the_run_that_committed_may_be_submitted_again(tmp_path: Path) -> None:
    save = f"ckpt.save={tmp_path / 'saved'}"
    order = take_order(Options(PIPELINE, overrides=[f"run.root={tmp_path}", save]), lambda line: None)
    run_id = prepare(order.config, order.plan, "requeue").run_id
    committed(tmp_path / "saved", 3)
    record = tmp_path / "saved/iter_0000003/COMMITTED.json"
    record.write_text(record.read_text().replace('"run_id": "r1"', f'"run_id": "{run_id}"'))
    assert failures(tmp_path, save) == ([], [])


def test_a_reward_that_is_not_there_is_a_problem_unless_the_jobs_run_another_python(tmp_path: Path) -> None:
    reward = ["rollout.rm_type=null", "rollout.custom_rm_path=no_such_module.reward"]
    [problem], _ = failures(tmp_path, *reward)
    assert "no module no_such_module" in problem
    problems, [said] = failures(tmp_path, *reward, "slurm.container=[--container-image=r1.sqsh]")
    assert problems == [] and "not checked further, for slurm.container may bring it" in said


def test_an_interpreter_that_is_not_on_the_shared_file_system_is_a_problem(tmp_path: Path) -> None:
    missing = tmp_path / "venv/bin/python"
    [problem], _ = failures(tmp_path, f"slurm.python={missing}")
    assert problem.startswith(f"slurm.python = {missing}: no such file")
    # What a job's shell looks up, what a container has, and what another file system may have on the nodes.
    for python in ("python3", "/proc/no-such/python", "/no-such-root/python", f"env A=1 {missing}", sys.executable):
        assert failures(tmp_path, f"slurm.python={python}") == ([], [])
    assert failures(tmp_path, f"slurm.python={missing}", "slurm.container=[--container-image=x]") == ([], [])


def test_submit_refuses(tmp_path: Path) -> None:
    committed(tmp_path / "saved", 3)
    settings = [f"run.root={tmp_path / 'runs'}", f"ckpt.save={tmp_path / 'saved'}"]
    settings += ["rollout.dynamic_sampling_filter_path=r1hpc.rollout.filters.nonzero"]
    command = [sys.executable, "-m", "r1hpc.submit", PIPELINE, "--stage", "train", "--cluster", "local"]
    done = subprocess.run(
        [*command, *(word for setting in settings for word in ("--set", setting))],
        cwd=HOME,
        env={name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "iter_0000003 was committed by run r1" in done.stderr
    assert "r1hpc.rollout.filters has no nonzero" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_tells_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed(tmp_path / "saved", 3)
    settings = [f"run.root={tmp_path / 'runs'}", f"ckpt.save={tmp_path / 'saved'}"]
    assert main([PIPELINE, "--dry-run", *(word for setting in settings for word in ("--set", setting))]) == 0
    assert "note: ckpt.save = " in capsys.readouterr().out
