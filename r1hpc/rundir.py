"""The run directory: every path in it, and nothing else. All stages, attempts and tools agree through this file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AttemptDir:
    """`attempts/KEY`: what one attempt of the train job writes. KEY is (job id, restart count)."""

    root: Path

    @property
    def begin(self) -> Path:
        """begin.json: job, restart, start and end time, nodes [{name, address}] in the order that Slurm gives."""
        return self.root / "begin.json"

    @property
    def end(self) -> Path:
        """end.json: exit code, cause, decision. Missing when the batch host died; the next attempt then says why."""
        return self.root / "end.json"

    @property
    def facts(self) -> Path:
        """preflight/NODE.json: what each node reports of itself, written before it talks to any other node."""
        return self.root / "preflight"

    @property
    def roll(self) -> Path:
        """preflight.go: every node has reported, so that MPI may start; written by rank 0."""
        return self.root / "preflight.go"

    @property
    def report(self) -> Path:
        """preflight.json: the verdict over all nodes."""
        return self.root / "preflight.json"

    @property
    def hosts(self) -> Path:
        """hosts.json: [{name, address, slots}] in hostfile order; the first is the Ray head."""
        return self.root / "hosts.json"

    @property
    def hostfile(self) -> Path:
        """hostfile: the same hosts as Open MPI's mpirun reads them (`addr slots=8`)."""
        return self.root / "hostfile"

    @property
    def hydra_hostfile(self) -> Path:
        """hostfile.hydra: the same hosts as MPICH's mpiexec reads them (`addr:8`)."""
        return self.root / "hostfile.hydra"

    @property
    def launch(self) -> Path:
        """launch.json: the judged hosts and how the agents start on them."""
        return self.root / "launch.json"

    @property
    def secret(self) -> Path:
        """secret: what the attempt's own processes prove themselves with; mode 600."""
        return self.root / "secret"

    @property
    def driver(self) -> Path:
        """driver.json: why the driver left, in words, when it did not succeed."""
        return self.root / "driver.json"

    @property
    def placement(self) -> Path:
        """placement.json: one record a GPU slot: rank, host, gpu, pid."""
        return self.root / "placement.json"

    @property
    def progress(self) -> Path:
        """progress.json: what the driver is doing now, in which iteration, and since when."""
        return self.root / "progress.json"

    @property
    def committed(self) -> Path:
        """committed.json: the newest iteration that this attempt committed; missing while it has made no progress."""
        return self.root / "committed.json"

    @property
    def outcome(self) -> Path:
        """outcome.json: how the head agent ended the attempt, with the cause in words."""
        return self.root / "outcome.json"

    @property
    def logs(self) -> Path:
        """logs/: one file per node and process."""
        return self.root / "logs"

    @property
    def canary(self) -> CanaryAttempt:
        """canary/: the canary's logs and progress."""
        return CanaryAttempt(self.root / "canary", self)


@dataclass(frozen=True)
class CanaryAttempt(AttemptDir):
    """`canary/` of an attempt: the canary's own logs and progress. What an attempt is told, it is told with it."""

    attempt: AttemptDir

    @property
    def begin(self) -> Path:
        """Of the attempt."""
        return self.attempt.begin

    @property
    def launch(self) -> Path:
        """Of the attempt."""
        return self.attempt.launch

    @property
    def secret(self) -> Path:
        """Of the attempt."""
        return self.attempt.secret


@dataclass(frozen=True)
class CanaryDir:
    """`canary/`: a few layers of the model, their run, and whether it went well."""

    root: Path

    @property
    def model(self) -> Path:
        """model/: the first layers of ckpt.hf_checkpoint."""
        return self.root / "model"

    @property
    def bf16(self) -> Path:
        """model-bf16/: their cast, for engines that have no fp8."""
        return self.root / "model-bf16"

    @property
    def torch_dist(self) -> Path:
        """model_torch_dist/: their conversion, for the trainers."""
        return self.root / "model_torch_dist"

    @property
    def run(self) -> RunDir:
        """run/: the run directory of the two iterations."""
        return RunDir(self.root / "run")

    @property
    def passed(self) -> Path:
        """PASSED: what passed, so that nobody asks it again; another configuration, model or version is asked anew."""
        return self.root / "PASSED"


@dataclass(frozen=True)
class RunDir:
    """A run directory: `RUN` in the documentation."""

    root: Path

    @property
    def run(self) -> Path:
        """run.json: id, name, creation time, configuration hash, version."""
        return self.root / "run.json"

    @property
    def config(self) -> Path:
        """config.yaml: the resolved configuration that every job of the run reads."""
        return self.root / "config.yaml"

    @property
    def plan(self) -> Path:
        """plan.json"""
        return self.root / "plan.json"

    @property
    def plan_text(self) -> Path:
        """plan.txt: the plan as it was printed."""
        return self.root / "plan.txt"

    @property
    def jobs(self) -> Path:
        """jobs.json: the jobs submitted, per stage."""
        return self.root / "jobs.json"

    @property
    def sbatch(self) -> Path:
        """sbatch/: the sbatch texts as submitted."""
        return self.root / "sbatch"

    @property
    def logs(self) -> Path:
        """logs/: standard output and error of every job."""
        return self.root / "logs"

    @property
    def submitit(self) -> Path:
        """submitit/STAGE: submitit's pickles and results."""
        return self.root / "submitit"

    @property
    def sweep_index(self) -> Path:
        """sweep.txt: the run directories of a sweep, line N+1 for array task N."""
        return self.root / "sweep.txt"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/: the commits, where ckpt.save names no other place."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one line an iteration."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """tensorboard/: the same for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def curves(self) -> Path:
        """curves.png: reward and accuracy over the iterations."""
        return self.root / "curves.png"

    @property
    def rollouts(self) -> Path:
        """rollouts/: every rollout, with debug.save_rollouts."""
        return self.root / "rollouts"

    @property
    def canary(self) -> CanaryDir:
        """canary/: what is tried with a few layers before the run starts."""
        return CanaryDir(self.root / "canary")

    @property
    def done(self) -> Path:
        """DONE: the run is complete; a requeued job leaves at once."""
        return self.root / "DONE"

    @property
    def hold(self) -> Path:
        """HOLD: a person has to look before any job of the run starts again; the next submit removes it."""
        return self.root / "HOLD"

    @property
    def attempts(self) -> Path:
        """attempts/: one directory per attempt of the train job."""
        return self.root / "attempts"

    def attempt(self, job_id: str, restart: int) -> AttemptDir:
        """The directory of attempt (job, restart); not created."""
        return AttemptDir(self.attempts / f"{job_id}-r{restart}")
