"""The configurations and sites that are shipped load, and r1.yaml is the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.config.duration import format_slurm_time, parse_minutes

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
