"""The configurations and sites that are shipped load, and r1.yaml is the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.config.duration import format_slurm_time, parse_minutes
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.parameters import model_modules, total_parameters
from r1hpc.plan.plan_for import plan_for

CONFIGS = Path(__file__).parents[2] / "configs"
SITES = sorted(path.stem for path in (CONFIGS / "sites").glob("*.yaml"))


def test_r1_yaml_is_the_recipe() -> None:
    loaded = load_config(CONFIGS / "r1.yaml", environ={})
    config = loaded.config
    assert loaded.notices == ()
    assert config.hosts.num_nodes * config.hosts.gpus_per_node == 128
    assert config.slurm.time_limit == 24 * 60
    perf, sglang = config.perf, config.sglang
    layout = (perf.tensor_model_parallel_size, perf.pipeline_model_parallel_size, perf.context_parallel_size)
    assert layout == (8, 4, 4)
    assert perf.expert_model_parallel_size == 32
    assert (sglang.rollout_num_gpus_per_engine, sglang.ep_size, sglang.dp_size) == (64, 64, 8)
    assert config.rollout.samples_per_rollout == 1024
    assert config.rollout.wave_prompts == 256
    assert config.ckpt.hf_checkpoint == "/data/r1/DeepSeek-R1"
    assert config.ckpt.hf_config == str(CONFIGS / "models" / "deepseek-r1" / "config.json")


def test_rehearsal_yaml_loads_without_a_gpu() -> None:
    loaded = load_config(CONFIGS / "rehearsal.yaml", environ={})
    assert loaded.config.hosts.device == "cpu"
    assert loaded.notices == ()


@pytest.mark.parametrize(("name", "gpus"), [("gpu1", 1), ("gpu2", 2)])
def test_gpu_configurations_fit_gpus_of_80_gb(name: str, gpus: int) -> None:
    loaded = load_config(CONFIGS / f"{name}.yaml", environ={})
    config = loaded.config
    assert loaded.notices == ()
    assert (config.hosts.device, config.hosts.num_nodes, config.hosts.gpus_per_node) == ("cuda", 1, gpus)
    assert config.hosts.gpu_memory_gib == 80
    plan_for(loaded)  # raises where something does not fit
    shape = read_model_shape(CONFIGS / "models" / "gpu-r1" / "config.json")
    assert total_parameters(model_modules(shape).main) > 1e9


def test_gpu2_yaml_is_gpu1_yaml_on_two_gpus() -> None:
    one, two = (load_config(CONFIGS / f"{name}.yaml", environ={}).config for name in ("gpu1", "gpu2"))
    assert two.sglang.passed_through == one.sglang.passed_through | {
        "disable_custom_all_reduce": True,
        "enforce_disable_flashinfer_allreduce_fusion": True,
    }
    assert (two.perf.tensor_model_parallel_size, two.perf.expert_model_parallel_size) == (2, 2)
    assert (two.sglang.rollout_num_gpus_per_engine, two.sglang.ep_size) == (2, 2)
    for section in ("ckpt", "rollout", "eval", "grpo", "optimizer", "cast", "convert"):
        assert getattr(two, section) == getattr(one, section), section


def test_there_are_sites() -> None:
    assert {"example", "pyxis", "apptainer"} <= set(SITES)


@pytest.mark.parametrize("site", SITES)
def test_every_site_lies_over_r1_yaml(site: str) -> None:
    loaded = load_config(CONFIGS / "r1.yaml", site=site, environ={})
    assert loaded.where("slurm.partition").startswith(f"{CONFIGS}/sites/{site}.yaml:")
    assert loaded.config.rollout == load_config(CONFIGS / "r1.yaml", environ={}).config.rollout


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("24:00:00", 1440),
        ("1:30", 2),  # minutes and seconds; a started minute counts
        ("00:30:01", 31),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:01", 2191),
    ],
)
def test_times_are_read_as_slurm_reads_them(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes
    assert parse_minutes(format_slurm_time(minutes)) == minutes
