"""The canary on two real trainers and two real engines: it passes, passes once, and names what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.canary.canary import canary_if_due
from r1hpc.cluster.launch import write_secret
from r1hpc.cluster.stop import StopListener
from r1hpc.config import Config, load_config
from r1hpc.config.dump import dump_config
from r1hpc.errors import CanaryError
from r1hpc.interrupt import StopRequested
from r1hpc.metrics.progress import read_progress
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.wiring import Attempt
from tests.actors.conftest import Cluster

pytestmark = pytest.mark.timeout(900)  # it starts engines twice; on a busy machine that takes minutes

HOME = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The rehearsal on one host of two slots: trainers TP2 EP2, two engines. Prepared, but for what only Slurm adds."""
    work = tmp_path_factory.mktemp("work")
    model = work / "tiny-r1"
    write_tiny_model(model, shards=1)
    prompts = [{"prompt": f"{number} + {number} =", "label": str(2 * number)} for number in range(8)]
    (work / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    overrides = [
        f"vars.WORK={work}",
        "run.canary=always",
        f"ckpt.hf_checkpoint={model}",
        f"ckpt.hf_config={model}/config.json",
        f"rollout.prompt_data={work}/prompts.jsonl",
        "hosts.num_nodes=1",
        "hosts.gpus_per_node=2",
        "sglang.rollout_num_gpus_per_engine=1",
        "perf.pipeline_model_parallel_size=1",
        "perf.decoder_last_pipeline_num_layers=null",
        "perf.context_parallel_size=1",
    ]
    config = load_config(HOME / "configs" / "rehearsal.yaml", overrides=overrides).config
    run = RunDir(Path(config.run.root) / config.run.name)
    run.root.mkdir(parents=True)
    run.config.write_text(dump_config(config))
    run.run.write_text(json.dumps({"run_id": "rehearsal-1", "config_hash": "abc", "signal_lead_s": 60}))
    return run


@pytest.fixture
def agent() -> Iterator[tuple[int, int]]:
    """The ends of the pipe to a driver's standard input; the read end is the driver's to close."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(writer)


def _attempt(run: RunDir, cluster: Cluster, name: str, reader: int) -> Attempt:
    directory = AttemptDir(run.attempts / name)
    directory.logs.mkdir(parents=True)
    directory.begin.write_text(json.dumps({"started": time.time()}))
    write_secret(directory.secret)
    config: Config = load_config(run.config).config
    listener = StopListener(os.fdopen(reader, encoding="utf-8"))
    return Attempt(run, directory, config, cluster.launch, cluster.group, cluster.slots, listener)


def test_a_sound_model_passes_and_is_not_asked_again(
    runner: asyncio.Runner, cluster: Cluster, run: RunDir, agent: tuple[int, int]
) -> None:
    attempt = _attempt(run, cluster, "1-r0", agent[0])
    told = runner.run(canary_if_due(attempt))
    assert told is not None and told.startswith("the canary passed in ")
    record = json.loads(run.canary.passed.read_text())
    assert record["attempt"] == "1-r0" and record["subject"]["layers"] == 2
    # First the codes of the checkpoint, dequantized: equal on both sides. Then the engines' weights are rounded again.
    first, after = record["mismatch_abs"]
    assert first < 1e-5 and first < after < 1e-2
    # Nothing is committed, and none of it counts as progress of the run.
    assert not run.checkpoints.exists() and not list(run.canary.run.checkpoints.glob("iter_*"))
    assert not attempt.directory.committed.exists() and not run.metrics.exists()
    assert (attempt.directory.canary.logs / "engine1.log").exists()
    began = time.monotonic()
    assert runner.run(canary_if_due(attempt)) is None
    assert time.monotonic() - began < 10


def test_an_engine_that_computes_otherwise_after_a_release_is_found(
    runner: asyncio.Runner, cluster: Cluster, run: RunDir, agent: tuple[int, int]
) -> None:
    """Its experts' weight in the sum is another: like a scale that was lost, it is in no sync, and breaks nothing."""
    file = run.canary.bf16 / "config.json"  # what engines start from on a CPU
    values = json.loads(file.read_text())
    assert values["routed_scaling_factor"] == 2.5
    file.write_text(json.dumps(values | {"routed_scaling_factor": 1.0}))
    attempt = _attempt(run, cluster, "2-r0", agent[0])
    with pytest.raises(CanaryError) as error:
        runner.run(canary_if_due(attempt, asked=True))
    said = str(error.value)
    assert said.startswith("the canary failed while sampling: iteration 0: with the first weights")
    assert "iteration 1: with an update, after memory was released and taken again" in said
    assert str(attempt.directory.canary.logs) in said
    assert not run.canary.passed.exists()
    assert read_progress(attempt.directory)["what"] == "canary"


def test_a_stop_request_ends_it_as_it_ends_a_run(
    runner: asyncio.Runner, cluster: Cluster, run: RunDir, agent: tuple[int, int]
) -> None:
    attempt = _attempt(run, cluster, "3-r0", agent[0])
    os.write(agent[1], b'{"stop": "SIGTERM at node01"}\n')
    with pytest.raises(StopRequested, match="asked to stop by SIGTERM at node01 while the canary was prepared"):
        runner.run(canary_if_due(attempt, asked=True))
