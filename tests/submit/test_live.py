"""A live run is started by nobody a second time: neither by Slurm, nor on a host, nor prepared by hand."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rundir import RunDir
from r1hpc.submit.live import claimed, refuse_live
from r1hpc.submit.parameters import HOME

RUN_ID = "r1-aaaaaa"


class Queue(SlurmClient):
    """A Slurm whose squeue shows these (id, comment); None: it does not answer."""

    def __init__(self, jobs: Sequence[tuple[str, str]] | None = ()) -> None:
        super().__init__()
        self._jobs = jobs

    def present(self) -> bool:
        return True

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        assert argv[0] == "squeue"
        if self._jobs is None:
            raise ClusterError("squeue: no answer within 20 s")
        return "".join(f"{job_id}\x1fname\x1fRUNNING\x1f{comment}\x1fNone\n" for job_id, comment in self._jobs)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has been prepared, and nothing else."""
    directory = RunDir(tmp_path)
    directory.logs.mkdir()
    _write(directory.run, {"run_id": RUN_ID, "sweep_of": None})
    return directory


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _slurm_jobs(run: RunDir, *job_ids: str) -> None:
    jobs = [{"stage": "train", "job_id": job_id, "num_tasks": 1, "submitted": 1.0} for job_id in job_ids]
    _write(run.jobs, {"cluster": "slurm", "jobs": jobs})


def _local(run: RunDir, pid: int | None, host: str) -> None:
    _write(run.jobs, {"cluster": "local", "pid": pid, "host": host, "stages": ["train"]})


@pytest.fixture
def sleeper() -> Iterator[int]:
    """The pid of a process that carries the run's mark."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=_marked())
    end = time.monotonic() + 20
    while f"R1HPC_RUN={RUN_ID}".encode() not in Path(f"/proc/{child.pid}/environ").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.01)
    yield child.pid
    child.kill()
    child.wait()


def _marked() -> dict[str, str]:
    return dict(os.environ, R1HPC_RUN=RUN_ID)


def test_a_directory_without_a_run_is_free_whatever_slurm_says(tmp_path: Path) -> None:
    refuse_live(RunDir(tmp_path), Queue(None))


def test_jobs_are_found_by_the_mark_in_their_comment(run: RunDir) -> None:
    refuse_live(run, Queue([("7", f"r1hpc={RUN_ID}b"), ("8", "r1hpc=other"), ("9", "(null)")]))
    with pytest.raises(SubmitError, match="is live already") as caught:
        refuse_live(run, Queue([("7", f"r1hpc={RUN_ID} team=x"), ("8_0", f"r1hpc={RUN_ID}"), ("9", "(null)")]))
    assert str(caught.value).endswith("end it first: scancel 7 8")


def test_a_job_that_has_no_mark_yet_is_found_by_its_noted_id(run: RunDir) -> None:
    _slurm_jobs(run, "41")
    with pytest.raises(SubmitError, match="scancel 41"):
        refuse_live(run, Queue([("41", "(null)")]))
    refuse_live(run, Queue([("41", "r1hpc=other")]))  # the id of another run's job on a new controller


def test_the_job_that_asks_is_not_in_its_own_way_but_any_other_is(run: RunDir) -> None:
    _slurm_jobs(run, "41")
    own = ("41", f"r1hpc={RUN_ID}")
    refuse_live(run, Queue([own]), own_job="41")
    with pytest.raises(SubmitError, match="scancel 42"):
        refuse_live(run, Queue([own, ("42", f"r1hpc={RUN_ID}")]), own_job="41")


def test_an_element_of_a_sweep_is_live_while_its_array_is(run: RunDir) -> None:
    _write(run.run, {"run_id": RUN_ID, "sweep_of": "base-bbbbbb"})
    with pytest.raises(SubmitError, match="scancel 50"):
        refuse_live(run, Queue([("50_1", "r1hpc=base-bbbbbb")]))
    refuse_live(run, Queue([]))
    with pytest.raises(SubmitError, match=r"cannot tell .* the sweep of base-bbbbbb"):
        refuse_live(run, Queue(None))


def test_a_silent_slurm_blocks_a_run_that_went_there_last(run: RunDir) -> None:
    refuse_live(run, Queue(None))
    _slurm_jobs(run, "41", "42")
    with pytest.raises(SubmitError, match=r"cannot tell .*\(41, 42\), and squeue: no answer within 20 s") as caught:
        refuse_live(run, Queue(None))
    assert str(run.jobs) in str(caught.value)
    with pytest.raises(SubmitError, match=r"\(42\)"):
        refuse_live(run, Queue(None), own_job="41")
    _slurm_jobs(run)
    with pytest.raises(SubmitError, match="a submit that did not end"):
        refuse_live(run, Queue(None))


def test_a_restarted_job_goes_on_when_slurm_is_silent_and_it_is_the_only_one_noted(run: RunDir) -> None:
    _slurm_jobs(run, "41")
    refuse_live(run, Queue(None), own_job="41")


def test_a_process_of_this_host_is_found_also_without_a_noted_pid(run: RunDir, sleeper: int) -> None:
    for pid in (sleeper, None):
        _local(run, pid, socket.gethostname())
        with pytest.raises(SubmitError, match=rf"is live already: pid {sleeper}; .* kill {sleeper}$"):
            refuse_live(run, Queue([]))
    _write(run.logs / "local.json", {"exit_code": 0, "reason": "all stages completed"})
    refuse_live(run, Queue([]))


def test_a_pid_that_belongs_to_another_program_now_is_none_of_the_run(run: RunDir) -> None:
    _local(run, os.getppid(), socket.gethostname())
    refuse_live(run, Queue([]))


def test_a_run_of_another_host_is_taken_for_live_until_its_verdict(run: RunDir) -> None:
    _local(run, 1234, "elsewhere.invalid")
    with pytest.raises(SubmitError, match=r"on host elsewhere\.invalid, pid 1234"):
        refuse_live(run, Queue([]))
    _write(run.logs / "local.json", {"exit_code": 143, "reason": "terminated by a signal"})
    refuse_live(run, Queue([]))


def test_a_claim_keeps_a_second_submit_out_of_every_directory(run: RunDir, tmp_path: Path) -> None:
    element = RunDir(tmp_path / "element")
    refused = pytest.raises(SubmitError, match="another submit is working on")
    with claimed([run, element], Queue([])), refused, claimed([element], Queue([])):
        pass
    with claimed([element], Queue([])):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_another_users_run_is_refused_with_their_name_and_nothing_is_written(run: RunDir) -> None:
    os.chown(run.run, 54321, -1)
    before = sorted(path.name for path in run.root.iterdir())
    with (
        pytest.raises(SubmitError, match=r"is user 54321's .* let user 54321 submit it") as caught,
        claimed([run], Queue()),
    ):
        pass
    assert "chown -R" in str(caught.value)
    assert sorted(path.name for path in run.root.iterdir()) == before


@pytest.fixture
def root(slurm4: RehearsalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run root that all nodes see."""
    folder = slurm4.shared_dir / request.node.name[:40]
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _submit(cluster: RehearsalCluster, root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    small = ["hosts.num_nodes=1", "perf.pipeline_model_parallel_size=1", "perf.context_parallel_size=1"]
    small += ["perf.decoder_last_pipeline_num_layers=null", f"run.root={root}"]
    # --begin keeps the job in the queue without running it.
    small.append("slurm.extra={begin: now+1hour}")
    command = [sys.executable, "-m", "r1hpc.submit", "tests/pipeline.yaml", "--stage", "preflight"]
    return cluster.run([*command, *(word for pair in small for word in ("--set", pair)), *options], cwd=HOME)


@pytest.mark.slurm
def test_what_is_queued_is_neither_started_here_nor_prepared_anew(slurm4: RehearsalCluster, root: Path) -> None:
    first = _submit(slurm4, root, "--cluster", "slurm")
    assert first.returncode == 0, first.stderr
    job_id = first.stdout.partition("preflight: job ")[2].split()[0]
    run = root / "rehearsal"
    before = [(run / name).read_bytes() for name in ("jobs.json", "run.json", "config.yaml")]
    try:
        for options in (["--cluster", "local"], ["--prepare"], ["--prepare", "--own-job", "1"]):
            refused = _submit(slurm4, root, *options, "--set", "grpo.eps_clip=0.1")
            assert refused.returncode == 1, options
            assert f"scancel {job_id}" in refused.stderr
            assert [(run / name).read_bytes() for name in ("jobs.json", "run.json", "config.yaml")] == before
        own = _submit(slurm4, root, "--prepare", "--own-job", job_id)
        assert own.stdout.splitlines()[-1] == str(run)
    finally:
        slurm4.cancel(job_id)


@pytest.mark.slurm
def test_an_element_is_not_submitted_by_itself_while_its_sweep_is_queued(slurm4: RehearsalCluster, root: Path) -> None:
    sweep = ["--sweep", "grpo.eps_clip_high=0.24,0.28"]
    first = _submit(slurm4, root, "--cluster", "slurm", *sweep)
    assert first.returncode == 0, first.stderr
    job_id = first.stdout.partition("preflight: job ")[2].split()[0].rstrip(",")
    element = ["--set", "run.name=rehearsal.eps_clip_high-0.28", "--set", "grpo.eps_clip_high=0.28"]
    try:
        for cluster in ("slurm", "local"):
            refused = _submit(slurm4, root, "--cluster", cluster, *element)
            assert refused.returncode == 1
            assert f"scancel {job_id}" in refused.stderr
    finally:
        slurm4.cancel(job_id)
    alone = _submit(slurm4, root, "--cluster", "slurm", *element)
    assert alone.returncode == 0, alone.stderr
    job_id = alone.stdout.partition("preflight: job ")[2].split()[0]
    try:
        refused = _submit(slurm4, root, "--cluster", "slurm", *sweep)
        assert refused.returncode == 1
        assert f"scancel {job_id}" in refused.stderr
    finally:
        slurm4.cancel(job_id)


@pytest.mark.slurm
def test_a_job_started_by_hand_makes_its_run_live(slurm4: RehearsalCluster, root: Path) -> None:
    settings = ["hosts.num_nodes=1", "perf.pipeline_model_parallel_size=1", "perf.context_parallel_size=1"]
    settings += ["perf.decoder_last_pipeline_num_layers=null", f"run.root={root}"]
    command = ["sbatch", "--parsable", "--nodes=1", "--gpus-per-node=2", f"--output={root}/by-hand.log"]
    command += ["--export=ALL,R1HPC_UNTIL=bring-up", "sbatch/train.sh", "tests/pipeline.yaml"]
    command += [word for pair in settings for word in ("--set", pair)]
    environment = {"R1HPC_PYTHON": sys.executable}
    job_id = slurm4.run(command, cwd=HOME, env=environment, check=True).stdout.strip()
    noted = root / "rehearsal" / "jobs.json"
    try:
        end = time.monotonic() + 60
        while not noted.exists():
            assert time.monotonic() < end, (root / "by-hand.log").read_text(encoding="utf-8")
            time.sleep(0.1)
        for cluster in ("slurm", "local"):
            refused = _submit(slurm4, root, "--cluster", cluster)
            assert refused.returncode == 1
            assert f"scancel {job_id}" in refused.stderr
    finally:
        slurm4.cancel(job_id)
        # Its script must find the run directory until it ends: one that cannot open its record holds the job.
        end = time.monotonic() + 60
        while job_id in slurm4.run(["squeue", "-h", "-o", "%A"], check=True).stdout.split():
            assert time.monotonic() < end, f"job {job_id} is still in the queue"
            time.sleep(0.2)
