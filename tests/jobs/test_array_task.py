"""An array task as a process: which element it is, and what signals do to it in and outside of Slurm."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from r1hpc.cluster.leftovers import processes_of
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.submit.parameters import HOME
from tests.checkpoint.runs import contents

# 100 MB in bf16: a process can be met in the middle of it.
LARGE = {"hidden_size": 1024, "moe_intermediate_size": 512, "n_routed_experts": 16, "num_hidden_layers": 3}
LARGE |= {"vocab_size": 4096}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The larger model, and its cast by one task that nobody disturbed."""
    base = tmp_path_factory.mktemp("model")
    write_tiny_model(base / "tiny-r1", overrides=LARGE, mtp=False, shards=4)
    done = _start(base).wait(timeout=60)
    assert done == 0
    yield base
    shutil.rmtree(base)


@pytest.fixture
def work(model: Path, tmp_path: Path) -> Iterator[Path]:
    """A WORK directory with the source alone; whatever a run in it leaves running is ended by its run id."""
    (tmp_path / "tiny-r1").symlink_to(model / "tiny-r1")
    yield tmp_path
    for path in tmp_path.glob("runs/*/run.json"):
        for process in processes_of(json.loads(path.read_text(encoding="utf-8"))["run_id"]):
            os.kill(process.pid, signal.SIGKILL)
    shutil.rmtree(tmp_path)


def _start(work: Path, before: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "jobs.cast", "tests/pipeline.yaml", "--set", f"vars.WORK={work}"],
        cwd=HOME,
        env=outside | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_until_it_writes(work: Path, deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not any(file.name.startswith(".model-") for file in work.rglob("*.tmp")):
        assert time.monotonic() < end, f"nothing was being written within {deadline_s:g} s"
        time.sleep(0.001)


def _without_names(directory: Path) -> dict[str, bytes]:
    """All files but the record of where the source lies and when it was written."""
    return {name: data for name, data in contents(directory).items() if name != "manifest.json"}


def test_an_element_does_its_share_and_the_last_one_publishes(work: Path, model: Path) -> None:
    first = _start(work, SLURM_ARRAY_TASK_ID="1")
    assert first.wait(timeout=60) == 0
    assert not (work / "tiny-r1-bf16" / "config.json").exists()
    beyond = _start(work, SLURM_ARRAY_TASK_ID="2")
    said, _ = beyond.communicate(timeout=60)
    assert (beyond.returncode, said) == (
        0,
        "element 2 has nothing to do: cast.num_tasks = 2, the last one is 1\n",
    )
    last = _start(work, SLURM_ARRAY_TASK_ID="0")
    said, _ = last.communicate(timeout=60)
    assert said.endswith(f"{work / 'tiny-r1-bf16'} is complete\n")
    assert _without_names(work / "tiny-r1-bf16") == _without_names(model / "tiny-r1-bf16")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_a_batch_job_a_signal_ends_it_and_leaves_no_half_file(
    work: Path, model: Path, number: signal.Signals, code: int
) -> None:
    for _ in range(5):
        process = _start(work, SLURM_JOB_ID="7")  # as in the shell of an allocation
        _wait_until_it_writes(work)
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
        if not (done := work / "tiny-r1-bf16").exists():
            break
        shutil.rmtree(done)  # complete before the signal came, which may have met the interpreter's own end: again
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert list(work.rglob("*.tmp")) == []
    assert _start(work).wait(timeout=60) == 0
    assert _without_names(work / "tiny-r1-bf16") == _without_names(model / "tiny-r1-bf16")


def test_in_a_batch_job_term_begins_a_grace_and_ends_nothing(work: Path, model: Path) -> None:
    deaf = ["sh", "-c", 'trap "" TERM; exec "$@"', "cast"]
    assert shlex.join(deaf[1:3]) in (HOME / "sbatch" / "cast.sh").read_text(encoding="utf-8")
    process = _start(work, deaf, SLURM_JOB_ID="7")
    _wait_until_it_writes(work)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert _without_names(work / "tiny-r1-bf16") == _without_names(model / "tiny-r1-bf16")


def test_an_error_is_one_line_and_its_exit_code_says_which_kind(work: Path) -> None:
    (work / "tiny-r1").unlink()
    process = _start(work)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in said and said.startswith("cast: ")
    (work / "tiny-r1").mkdir()
    nothing = subprocess.run(
        [sys.executable, "-m", "jobs.cast", "tests/pipeline.yaml", "--set", "ckpt.bf16_checkpoint=null"],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert nothing.returncode == 64, nothing.stderr
    assert "ckpt.bf16_checkpoint is null: there is no bf16 copy to be made" in nothing.stderr


def test_submitted_locally_a_signal_ends_all_of_it_in_order(work: Path, model: Path) -> None:
    larger = ["ckpt.hf_config=null", "hosts.gpu_memory_gib=6", "hosts.host_memory_gib=32"]
    one_by_one = ["cast.num_tasks=4", "cast.max_parallel=1"]
    values = [f"vars.WORK={work}", f"run.root={work}/runs", *larger, *one_by_one]
    command = [sys.executable, "-m", "r1hpc.submit", "tests/pipeline.yaml", "--cluster", "local", "--stage", "cast"]
    done = subprocess.run(
        [*command, *(word for value in values for word in ("--set", value))],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pid = int(done.stdout.partition("pid ")[2].partition(",")[0])
    _wait_until_it_writes(work)
    os.kill(pid, signal.SIGTERM)
    verdict = work / "runs" / "rehearsal" / "logs" / "local.json"
    end = time.monotonic() + 30
    while not verdict.exists():
        assert time.monotonic() < end, (work / "runs" / "rehearsal" / "logs" / "local.log").read_text(encoding="utf-8")
        time.sleep(0.05)
    assert json.loads(verdict.read_text()) == {"exit_code": 143, "reason": "terminated by a signal"}
    run_id = json.loads((work / "runs" / "rehearsal" / "run.json").read_text(encoding="utf-8"))["run_id"]
    while left := processes_of(run_id):
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert list(work.rglob(".model-*.tmp")) == []
    assert not (work / "tiny-r1-bf16" / "config.json").exists()


@pytest.mark.parametrize("module", ["jobs.cast", "jobs.convert"])
def test_submitting_it_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not {"torch", "numpy", "submitit", "ray"} & loaded


def test_what_casts_and_converts_knows_nothing_of_slurm() -> None:
    sources = list((HOME / "r1hpc" / "checkpoint").glob("*.py"))
    assert len(sources) > 20
    assert [file.name for file in sources if "SLURM_" in file.read_text(encoding="utf-8")] == []
