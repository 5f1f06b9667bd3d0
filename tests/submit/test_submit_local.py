"""`submit --cluster local`: the preflight stage on this bare host, ended by a signal, refused while it lives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.leftovers import processes_of
from r1hpc.submit.local_runner import cause
from r1hpc.submit.parameters import HOME
from tests.cluster.loopback import port_base

SUBMIT = [sys.executable, "-m", "r1hpc.submit", "tests/pipeline.yaml", "--stage", "preflight", "--cluster", "local"]
# Two hosts are enough here.
SMALL = ["hosts.num_nodes=2", "perf.pipeline_model_parallel_size=1", "perf.decoder_last_pipeline_num_layers=null"]
SMALL += ["hosts.port_span=200"]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A run root; whatever a failed test leaves running is ended by its run id."""
    yield tmp_path
    for path in tmp_path.glob("*/run.json"):
        for process in processes_of(json.loads(path.read_text(encoding="utf-8"))["run_id"]):
            os.kill(process.pid, signal.SIGKILL)


def _submit(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pairs = [*SMALL, f"run.root={root}", f"hosts.port_base={port_base()}"]
    settings = [word for pair in pairs for word in ("--set", pair)]
    return subprocess.run(
        [*SUBMIT, *settings, *options], cwd=HOME, capture_output=True, text=True, timeout=200, check=False
    )


def _run_id(root: Path) -> str:
    return str(json.loads((root / "rehearsal" / "run.json").read_text(encoding="utf-8"))["run_id"])


def _wait_for(condition: Path, deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not condition.exists():
        assert time.monotonic() < end, f"{condition} is not there after {deadline_s} s"
        time.sleep(0.1)


def test_without_a_launcher_nothing_is_begun(root: Path) -> None:
    """Beside the Python that the stages would run."""
    python = root / "bin" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    mpiexec = python.with_name("mpiexec")
    mpiexec.write_text("#!/bin/sh\necho 'mpiexec (OpenRTE) 4.1.6'\n", encoding="utf-8")
    mpiexec.chmod(0o755)
    done = _submit(root, "--set", f"slurm.python={python}")
    assert done.returncode != 0
    assert f"{mpiexec} is no Hydra" in done.stderr
    assert not (root / "rehearsal").exists()


def test_preflight_stage_on_a_bare_host(root: Path) -> None:
    done = _submit(root, "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    # Ray gives its head 30 s to start, which sixteen nodes of another test may take from it: then there is a second.
    attempt = max((root / "rehearsal" / "attempts").iterdir())
    slots = json.loads((attempt / "placement.json").read_text(encoding="utf-8"))
    assert [(slot["rank"], slot["host"], slot["gpu"]) for slot in slots] == [
        (0, "local01", 0),
        (1, "local01", 1),
        (2, "local02", 0),
        (3, "local02", 1),
    ]
    assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["cause"] == "done"
    assert "2 of 2 nodes are good" in done.stdout
    assert processes_of(_run_id(root)) == []


_LOGS = "You can check full logs with 'job.stderr(0)' and 'job.stdout(0)'or at paths:\n  - /log.err\n  - /log.out"
"""How submitit ends what it says of a failed task."""


def _said(trace: str) -> str:
    rule = "-" * 22
    return f"Job (task=0) failed during processing with trace:\n{rule}\n{trace}\n{rule}\n{_LOGS}"


def test_the_cause_is_the_exception_and_not_the_place_of_the_log() -> None:
    frame = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\n    ^^^\n'
    ended = "jobs.local_train.AttemptsEnded: bad_node: a node failed the preflight (exit code 76)\n"
    assert cause(_said(frame + ended)) == "AttemptsEnded: bad_node: a node failed the preflight (exit code 76)"
    chained = f"{frame}KeyError: 'a'\n\nThe above exception was the direct cause of ...:\n\n{frame}{ended}"
    assert cause(_said(chained)) == "AttemptsEnded: bad_node: a node failed the preflight (exit code 76)"
    two_lines = "r1hpc.errors.ConfigError: 1 configuration problem:\n  hosts.num_nodes = 0\n"
    assert cause(_said(frame + two_lines)) == "ConfigError: 1 configuration problem:\n  hosts.num_nodes = 0"


def test_a_task_without_a_result_is_told_by_the_first_lines() -> None:
    text = "Job 7 (task: 0) with path /7_result.pkl\nhas not produced any output (state: INTERRUPTED)\n"
    text += f"No error stream produced. Look at stdout: /7.out\n{'-' * 40}\nlast\nlines\n"
    said = "Job 7 (task: 0) with path /7_result.pkl has not produced any output (state: INTERRUPTED) "
    assert cause(text) == said + "No error stream produced. Look at stdout: /7.out"


def test_a_failed_preflight_is_told_by_its_cause(root: Path) -> None:
    done = _submit(root, "--wait", "--set", "hosts.fabric_interface=absent0", "--set", "run.max_crashes=1")
    assert done.returncode == 1
    assert "stage preflight, task 0: AttemptsEnded: invalid: " in done.stderr
    assert "the same is wrong on 2 of 2 nodes" in done.stderr
    (attempt,) = (root / "rehearsal" / "attempts").iterdir()
    end = json.loads((attempt / "end.json").read_text(encoding="utf-8"))
    assert (end["exit_code"], end["blamed"]) == (64, [])


def test_asked_to_stop_during_a_preflight_that_fails_nothing_is_tried_again(root: Path) -> None:
    first = _submit(root, "--set", "hosts.host_memory_gib=1000000")
    pid = int(first.stdout.partition("pid ")[2].partition(",")[0])
    _wait_for(root / "rehearsal" / "attempts" / "local-r0" / "preflight.hydra", 60)
    os.kill(pid, signal.SIGTERM)
    _wait_for(root / "rehearsal" / "logs" / "local.json", 90)
    # The preflight fails by itself too, so another attempt may have begun before the signal came; none may after it.
    last = max((root / "rehearsal" / "attempts").iterdir())
    assert json.loads((last / "end.json").read_text(encoding="utf-8"))["exit_code"] == 75


def test_a_second_submit_is_refused_and_a_signal_ends_everything(root: Path) -> None:
    first = _submit(root)
    assert first.returncode == 0, first.stderr
    pid = int(first.stdout.partition("pid ")[2].partition(",")[0])
    attempts = root / "rehearsal" / "attempts" / "local-r0"
    _wait_for(attempts / "launch.json", 60)
    second = _submit(root)
    assert second.returncode == 1
    live = second.stderr.partition("is live already: pid ")[2].partition(";")[0]
    assert str(pid) in live.split()
    os.kill(pid, signal.SIGTERM)
    _wait_for(root / "rehearsal" / "logs" / "local.json", 60)
    verdict = json.loads((root / "rehearsal" / "logs" / "local.json").read_text(encoding="utf-8"))
    assert verdict == {"exit_code": 143, "reason": "terminated by a signal"}
    end = time.monotonic() + 20
    while left := processes_of(_run_id(root)):
        assert time.monotonic() < end, left
        time.sleep(0.2)


def test_killed_with_sigkill_the_local_attempt_takes_everything_with_it(root: Path) -> None:
    first = _submit(root)
    assert first.returncode == 0, first.stderr
    attempt = root / "rehearsal" / "attempts" / "local-r0"
    _wait_for(attempt / "logs" / "local02-ray.log", 60)
    # The task that runs the attempt, not submitit's controller above it.
    task = next(
        process.pid
        for process in processes_of(_run_id(root))
        if "submitit.core._submit" in Path(f"/proc/{process.pid}/cmdline").read_text(encoding="utf-8")
    )
    os.kill(task, signal.SIGKILL)
    end = time.monotonic() + 40
    while left := processes_of(_run_id(root)):
        assert time.monotonic() < end, left
        time.sleep(0.2)
