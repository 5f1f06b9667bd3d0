"""What submit says of a site before it queues anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.config import Config, load_config
from r1hpc.rundir import RunDir
from r1hpc.submit.parameters import HOME
from r1hpc.submit.site_notices import plain_notices, slurm_notices


class Site(SlurmClient):
    """A site of one partition."""

    def __init__(self, preempt_mode: str, config: str = "") -> None:
        super().__init__()
        self._answers = {"partition": f"PartitionName=low Default=YES PreemptMode={preempt_mode}\n", "config": config}

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        (answer,) = [text for what, text in self._answers.items() if what in argv]
        return answer


def _config(*overrides: str, name: str = "configs/r1.yaml") -> Config:
    return load_config(HOME / name, overrides=["run.root=/data/runs", "slurm.partition=low", *overrides]).config


@pytest.mark.parametrize(("mode", "said"), [("REQUEUE", 0), ("OFF", 0), ("SUSPEND", 1), ("GANG,SUSPEND", 1)])
def test_preemption_that_suspends_is_said(mode: str, said: int) -> None:
    notices = slurm_notices(_config(), Site(mode))
    assert len(notices) == said
    assert all(f"partition low: PreemptMode={mode}, so a preempted job is stopped" in text for text in notices)


def test_exit_codes_of_ours_that_slurm_acts_on_are_said() -> None:
    assert slurm_notices(_config(), Site("OFF", "RequeueExit             = 2-9,99\nRequeueExitHold = (null)\n")) == []
    settings = "RequeueExit             = 60-64\nRequeueExitHold         = 75,80\n"
    requeued, held = slurm_notices(_config(), Site("OFF", settings))
    assert "RequeueExit = 60-64" in requeued
    assert "leaves with 64 (the configuration is wrong)," in requeued
    assert "holds a job by itself that leaves with 75 (asked to stop), 80 (the canary failed)," in held


PATHS = ["ckpt.hf_checkpoint=/data/R1", "ckpt.bf16_checkpoint=null", "ckpt.ref_load=/data/ref", "ckpt.load=null"]
PATHS += ["ckpt.save=null", "rollout.prompt_data='/database/p.jsonl@[0:10]'", "slurm.python=/usr/bin/python3"]


def _missing(*container: str) -> list[str]:
    config = _config(*PATHS, f"slurm.container=[{', '.join(repr(option) for option in container)}]")
    notices = plain_notices(config, RunDir(Path("/data/runs/x")))
    return [text.partition(",")[0] for text in notices if "lies under no target" in text]


def test_what_lies_outside_of_a_containers_mounts_is_said_with_the_fix() -> None:
    assert _missing() == []
    assert _missing("--container-image=x") == []
    assert _missing("--container-mounts=/data:/data,/dev/shm:/dev/shm") == ["the checkout", "rollout.prompt_data"]
    assert _missing("--container-mounts", f"/data,/database:/database:ro,{HOME}") == []
    inside = ["the checkout", "the run directory", "ckpt.hf_checkpoint", "ckpt.ref_load"]
    assert _missing("--container-mounts=/data:/inside,/database") == inside
    config = _config(*PATHS, "slurm.container=['--container-mounts=/data:/data']")
    notices = plain_notices(config, RunDir(Path("/data/runs/x")))
    assert f"add {HOME}:{HOME} to --container-mounts in slurm.container" in notices[0]


def test_an_engine_over_several_hosts_with_data_parallel_attention_is_said_to_be_open() -> None:
    (notice,) = plain_notices(_config(), RunDir(Path("/data/runs/x")))
    assert "whoever reaches that address can run code as you" in notice
    one_host = ("sglang.rollout_num_gpus_per_engine=8", "sglang.dp_size=8", "sglang.ep_size=8")
    assert plain_notices(_config(*one_host), RunDir(Path("/data/runs/x"))) == []
