"""Ray on loopback with two slots, the tiny model converted, and what a run's configuration says of both.

A process is a driver of one Ray at a time, so a Ray and whatever belongs to it end with the module that asked for them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.util.placement_group import PlacementGroup

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.leftovers import processes_of
from r1hpc.cluster.processes import RUN
from r1hpc.cluster.ray import Slot, connected, place_slots, wait_for_nodes
from r1hpc.cluster.ray_command import ray_environment, start_command
from r1hpc.config import Config, load_config
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.cluster.loopback import port_base

HOME = Path(__file__).parents[2]
START_S = 240.0
"""Deadline of a start; 15 to 30 s on a quiet machine."""
HOST = "local01"


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process is a driver of."""

    launch: Launch
    group: PlacementGroup
    slots: list[Slot]
    logs: Path


@dataclass(frozen=True)
class Model:
    """The tiny R1."""

    hugging_face: Path
    """In block fp8."""
    bf16: Path
    torch_dist: Path


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all tests of a module: groups and clients belong to the loop that made them."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ray on one host of two slots; whatever is left of it at the end is killed by pid."""
    logs = tmp_path_factory.mktemp("logs")
    host = ClusterHost(HOST, "127.0.0.10", 2)  # Ray takes 127.0.0.1 for a name of the interface to the outside
    run_id = f"test-actors-{os.getpid()}-{time.time_ns()}"
    launch = Launch(run_id, "cpu", (host,), port_base(), 400, 80_000_000, START_S, 1)
    scratch = Path(tempfile.mkdtemp(prefix="r1-ray-", dir="/tmp"))  # Ray's sockets need a short path
    # The driver is this process, which has no token: that strangers are refused is tested with whole attempts.
    environment = ray_environment(os.environ, launch, host, logs / "none", {RUN: run_id}, scratch) | {
        "RAY_AUTH_MODE": "disabled"
    }
    with open(logs / "ray.log", "wb") as log:
        ray = subprocess.Popen(start_command(launch, host, scratch), env=environment, stdout=log, stderr=log)
    try:
        with _joined(launch, ray, logs):
            wait_for_nodes(launch.hosts, START_S, time.sleep)
            group, slots = place_slots(launch.hosts, START_S, time.sleep)
            yield Cluster(launch, group, slots, logs)
    finally:
        ray.terminate()
        ray.wait(30)
        for process in processes_of(run_id):
            os.kill(process.pid, signal.SIGKILL)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """In bf16 files, for engines on a CPU, and converted, for trainers."""
    base = tmp_path_factory.mktemp("model")
    for name, fp8 in (("hf", True), ("bf16", False)):
        write_tiny_model(base / name, fp8=fp8, mtp=False, shards=1)
    source = open_checkpoint(base / "bf16")
    slices = make_slices(source.shape.num_layers, 1, None, None, 1, "layout")
    convert_all(plan_conversion(source, base / "torch-dist", slices, 1), 1, lambda line: None)
    return Model(base / "hf", base / "bf16", base / "torch-dist")


@pytest.fixture(scope="session")
def config(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The rehearsal on one host: trainers TP2 EP2."""
    overrides = [
        f"vars.WORK={tmp_path_factory.mktemp('work')}",
        f"ckpt.hf_checkpoint={model.hugging_face}",
        f"ckpt.hf_config={model.hugging_face}/config.json",
        f"ckpt.bf16_checkpoint={model.bf16}",
        f"ckpt.ref_load={model.torch_dist}",
        "hosts.num_nodes=1",
        "perf.pipeline_model_parallel_size=1",
        "perf.decoder_last_pipeline_num_layers=null",
        "perf.context_parallel_size=1",
        "perf.process_groups=rebuild",  # as above 16 GPUs
        "rollout.rollout_batch_size=2",
        "sync.quantize=false",  # so that engines have the trainers' weights exactly
    ]
    return load_config(HOME / "tests" / "pipeline.yaml", overrides=overrides).config


def _joined(launch: Launch, ray: subprocess.Popen[bytes], logs: Path) -> AbstractContextManager[None]:
    """Join once the head's store answers."""
    end = time.monotonic() + START_S
    while b"Ray runtime started" not in (logs / "ray.log").read_bytes():
        assert ray.poll() is None, (logs / "ray.log").read_text()
        assert time.monotonic() < end, "Ray is not up"
        time.sleep(0.1)
    return connected(launch)
