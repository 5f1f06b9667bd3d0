"""cast and convert as arrays on a real Slurm: by hand, by submit, preempted, cancelled, one element at a time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.submit.parameters import HOME
from tests.checkpoint.runs import contents
from tests.conftest import ClusterFactory
from tests.jobs.array_elements import element, held_in_the_middle, wait_for_end, wait_until

pytestmark = pytest.mark.slurm

CONFIG = "tests/pipeline.yaml"
# Some 60 MB in bf16, in files that take long enough to be met while they are written.
LARGER = {"hidden_size": 512, "moe_intermediate_size": 512, "n_routed_experts": 8, "vocab_size": 4096}
WHOLE_NODE = "128"
"""CPUs: an element has its node to itself, so that the preemption of one is that of no other."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The larger model and, made by single tasks on this host, what the stages have to come to."""
    base = tmp_path_factory.mktemp("model")
    write_tiny_model(base / "tiny-r1", overrides=LARGER, shards=9)
    for stage in ("cast", "convert"):
        _here(stage, base)
    yield base
    shutil.rmtree(base)


def _here(stage: str, work: Path) -> None:
    command = [sys.executable, "-m", f"jobs.{stage}", CONFIG, "--set", f"vars.WORK={work}"]
    subprocess.run(command, cwd=HOME, check=True, timeout=120, capture_output=True)


def _work(cluster: RehearsalCluster, model: Path, request: pytest.FixtureRequest, *made: str) -> Path:
    """A WORK directory that all nodes see, with the tiny model and, of the reference, what is named."""
    work = cluster.shared_dir / re.sub(r"\W+", "-", request.node.name)[:60]
    work.mkdir(parents=True)
    for name in ("tiny-r1", *made):
        shutil.copytree(model / name, work / name)
    return work


def _outputs(work: Path) -> dict[str, dict[str, bytes]]:
    """Both checkpoints, without the places that the records name."""
    found = {name: contents(work / name) for name in ("tiny-r1-bf16", "tiny-r1_torch_dist")}
    for files in found.values():
        for name, data in files.items():
            if name.endswith(".json"):
                files[name] = data.replace(str(work).encode(), b"WORK")
    # Both are digests of the source's times, among other things.
    for files, name in ((found["tiny-r1-bf16"], "manifest.json"), (found["tiny-r1_torch_dist"], "release/source.json")):
        files[name] = re.sub(rb'"(identity|conversion)": ?"\w+"', b"", files[name])
    return found


def _sbatch(cluster: RehearsalCluster, script: str, work: Path, options: Sequence[str], settings: Sequence[str]) -> str:
    """Submit a script of sbatch/ as a person does; the array's id."""
    values = [word for value in (f"vars.WORK={work}", *settings) for word in ("--set", value)]
    command = ["sbatch", "--parsable", f"--output={work}/%x-%A_%a.log", *options, f"sbatch/{script}.sh", CONFIG]
    done = cluster.run([*command, *values], cwd=HOME, env={"R1HPC_PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _submit(cluster: RehearsalCluster, work: Path, options: Sequence[str], settings: Sequence[str]) -> str:
    """Submit cast and convert by r1hpc.submit; what it printed."""
    command = [sys.executable, "-m", "r1hpc.submit", CONFIG, "--cluster", "slurm", *options]
    # The model is larger than the one that the configuration is made for.
    larger = ["ckpt.hf_config=null", "hosts.gpu_memory_gib=4", "hosts.host_memory_gib=16"]
    values = [f"vars.WORK={work}", f"run.root={work}/runs", *larger, *settings]
    done = cluster.run([*command, *(word for value in values for word in ("--set", value))], cwd=HOME, timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _job_ids(work: Path) -> dict[str, str]:
    record = json.loads((work / "runs" / "rehearsal" / "jobs.json").read_text(encoding="utf-8"))
    return {job["stage"]: job["job_id"] for job in record["jobs"]}


def _logs(work: Path) -> str:
    return "\n".join(f"== {log.name}\n{log.read_text()}" for log in sorted(work.rglob("*.log")))


def test_by_hand_as_the_scripts_are(slurm4: RehearsalCluster, model: Path, request: pytest.FixtureRequest) -> None:
    work = _work(slurm4, model, request)
    cast = _sbatch(slurm4, "cast", work, ["--array=0-2"], [])  # one more than cast.num_tasks
    convert = _sbatch(slurm4, "convert", work, [f"--dependency=afterok:{cast}", "--kill-on-invalid-dep=yes"], [])
    for index in range(4):
        assert wait_for_end(slurm4, convert, index)["JobState"] == "COMPLETED", _logs(work)
    assert _outputs(work) == _outputs(model)
    said = (work / f"r1hpc-cast-{cast}_2.log").read_text(encoding="utf-8")
    assert said == "element 2 has nothing to do: cast.num_tasks = 2, the last one is 1\n"


def test_by_submit_as_a_chain_of_arrays_and_once_more(
    slurm4: RehearsalCluster, model: Path, request: pytest.FixtureRequest
) -> None:
    work = _work(slurm4, model, request)
    stages = ["--stage", "cast", "--stage", "convert", "--wait"]
    _submit(slurm4, work, stages, [])
    jobs = _job_ids(work)
    text = (work / "runs" / "rehearsal" / "sbatch" / "convert.sh").read_text(encoding="utf-8")
    assert f"#SBATCH --dependency=afterok:{jobs['cast']}\n" in text
    assert "#SBATCH --array=0-3%4\n" in text
    assert _outputs(work) == _outputs(model)
    before = {path: path.stat().st_mtime_ns for path in work.glob("tiny-r1*/**/*") if path.is_file()}
    printed = _submit(slurm4, work, stages, [])
    assert "is complete" in printed + _logs(work)
    assert {path: path.stat().st_mtime_ns for path in work.glob("tiny-r1*/**/*") if path.is_file()} == before


def _preempt(cluster: RehearsalCluster, job: str, index: int) -> None:
    """A job of the higher partition takes the whole node of the element."""
    node = element(cluster, job, index)["NodeList"]
    command = ["sbatch", "--parsable", "-p", "high", "--exclusive", f"--nodelist={node}", "--output=/dev/null"]
    cluster.run([*command, "--wrap=sleep 1"], check=True)


def _preempt_in_the_middle(cluster: RehearsalCluster, job: str, num_tasks: int, published: Path) -> None:
    """Preempt element 1 while it writes; it alone comes back, and all end well."""
    others = [index for index in range(num_tasks) if index != 1]
    with held_in_the_middle(cluster, job, 1):
        _preempt(cluster, job, 1)
        for index in others:
            wait_for_end(cluster, job, index)
        assert not published.exists()
        wait_until(lambda: element(cluster, job, 1)["Restarts"] == "1", 60, lambda: element(cluster, job, 1))
    for index in range(num_tasks):
        ended = wait_for_end(cluster, job, index)
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", str(int(index == 1)))
    assert published.exists()


def test_one_preempted_element_submitted_by_hand_is_requeued_alone(
    make_cluster: ClusterFactory, model: Path, request: pytest.FixtureRequest
) -> None:
    cluster = make_cluster(nodes=4, grace_s=1)
    work = _work(cluster, model, request, "tiny-r1-bf16")
    options = ["--array=0-2", f"--cpus-per-task={WHOLE_NODE}"]
    convert = _sbatch(cluster, "convert", work, options, ["convert.num_tasks=3"])
    _preempt_in_the_middle(cluster, convert, 3, work / "tiny-r1_torch_dist" / "release" / ".metadata")
    assert _outputs(work)["tiny-r1_torch_dist"] == _outputs(model)["tiny-r1_torch_dist"]


def test_one_preempted_element_of_a_chain_is_requeued_alone_and_the_chain_goes_on(
    make_cluster: ClusterFactory, model: Path, request: pytest.FixtureRequest
) -> None:
    cluster = make_cluster(nodes=4, grace_s=1)
    work = _work(cluster, model, request)
    settings = ["cast.num_tasks=3", f"cast.cpus_per_task={WHOLE_NODE}", "convert.num_tasks=2"]
    _submit(cluster, work, ["--stage", "cast", "--stage", "convert"], settings)
    jobs = _job_ids(work)
    _preempt_in_the_middle(cluster, jobs["cast"], 3, work / "tiny-r1-bf16" / "config.json")
    # It has waited for the success of every element.
    for index in range(2):
        assert wait_for_end(cluster, jobs["convert"], index)["JobState"] == "COMPLETED", _logs(work)
    assert _outputs(work) == _outputs(model)


def test_preempted_before_its_first_line_an_element_is_not_taken_for_failed(
    make_cluster: ClusterFactory, model: Path, request: pytest.FixtureRequest
) -> None:
    # Python takes a second to have its handlers; TERM at the beginning of the grace must not end it before that. And
    # it ends well after its grace: for Slurm that is TIMEOUT, unless it asks to be run again.
    cluster = make_cluster(nodes=2, grace_s=1)
    work = _work(cluster, model, request, "tiny-r1-bf16")
    convert = _sbatch(
        cluster, "convert", work, ["--array=0-1", f"--cpus-per-task={WHOLE_NODE}"], ["convert.num_tasks=2"]
    )
    wait_until(lambda: element(cluster, convert, 1)["JobState"] == "RUNNING", 30, lambda: element(cluster, convert, 1))
    _preempt(cluster, convert, 1)
    for index in range(2):
        assert wait_for_end(cluster, convert, index)["JobState"] == "COMPLETED", _logs(work)
    assert _outputs(work)["tiny-r1_torch_dist"] == _outputs(model)["tiny-r1_torch_dist"]


def test_a_cancelled_element_stays_cancelled_and_is_made_up_for_alone(
    slurm4: RehearsalCluster, model: Path, request: pytest.FixtureRequest
) -> None:
    work = _work(slurm4, model, request, "tiny-r1-bf16")
    settings = ["convert.num_tasks=3"]
    convert = _sbatch(slurm4, "convert", work, ["--array=0-2"], settings)
    with held_in_the_middle(slurm4, convert, 2):
        slurm4.cancel(f"{convert}_2")
        cancelled = wait_for_end(slurm4, convert, 2)
    for index in (0, 1):
        assert wait_for_end(slurm4, convert, index)["JobState"] == "COMPLETED", _logs(work)
    assert (cancelled["JobState"], cancelled["Restarts"]) == ("CANCELLED", "0")
    assert not (work / "tiny-r1_torch_dist" / "release").exists()
    again = _sbatch(slurm4, "convert", work, ["--array=2"], settings)
    assert wait_for_end(slurm4, again, 2)["JobState"] == "COMPLETED", _logs(work)
    assert _outputs(work)["tiny-r1_torch_dist"] == _outputs(model)["tiny-r1_torch_dist"]
    assert element(slurm4, convert, 2)["JobState"] == "CANCELLED"
