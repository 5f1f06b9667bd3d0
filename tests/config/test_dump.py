"""A configuration as text loads back to the same; the hash follows the science and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.config import Config, config_hash, dump_config, load_config
from r1hpc.config.dump import dump_yaml
from r1hpc.config.source import Origin
from r1hpc.config.yaml_core import parse_yaml

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

CONFIGS = Path(__file__).parents[2] / "configs"
texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
awkward = st.sampled_from(["no", "1e-6", "24:00:00", "0o17", "012", "~", "null", "true", "1_0", " x", "a: b", "#", ""])


@pytest.mark.parametrize("name", ["r1.yaml", "rehearsal.yaml", "gpu1.yaml", "gpu2.yaml"])
def test_a_dump_loads_back_to_the_same_from_anywhere(name: str, write_config: WriteConfig) -> None:
    config = load_config(CONFIGS / name).config
    path = write_config(dump_config(config), name="far/away/resolved.yaml")
    again = load_config(path, environ={})
    assert again.config == config
    assert again.notices == ()
    assert dump_config(again.config) == dump_config(config)


def test_what_passes_through_and_what_looks_like_a_reference_is_kept(write_config: WriteConfig) -> None:
    text = "slurm:\n  setup: ['echo $${HOME} $USER', '1e-6', 'no']\n  extra: {licenses: '0o17', exclusive: true}\n"
    text += "sglang:\n  max_total_tokens: 8192\n  attention_backend: '7'\n"
    config = load_config(write_config(text, append=True), environ={}).config
    assert config.slurm.setup == ("echo ${HOME} $USER", "1e-6", "no")
    again = load_config(write_config(dump_config(config), name="again.yaml"), environ={}).config
    assert again == config
    assert again.sglang.passed_through == {"max_total_tokens": 8192, "attention_backend": "7"}


@given(
    st.dictionaries(
        texts, texts | awkward | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.none(), min_size=1
    )
)
def test_every_value_survives_the_way_through_yaml(values: dict[str, object]) -> None:
    layer, problems = parse_yaml(dump_yaml({"section": values}), Origin("c", directory=Path()))
    if "<<" in values:
        return  # refused as a key on purpose
    assert problems == []
    assert layer.values == {"section": values}


@pytest.mark.parametrize(
    "override",
    [
        "run.name=other",
        "run.root=/elsewhere",
        "run.max_crashes=9",
        "hosts.num_nodes=4",
        "hosts.fabric_interface=ib1",
        "slurm.partition=other",
        "slurm.time_limit=90",
        "ckpt.hf_checkpoint=/elsewhere/hf",
        "ckpt.ref_load=/elsewhere/ref",
        "ckpt.save=/elsewhere/save",
        "rollout.prompt_data=/elsewhere/prompts.jsonl",
        "grpo.eps_clip=0.2",  # the default, written out
        "convert.num_tasks=8",
    ],
)
def test_the_hash_ignores_machine_and_place(write_config: WriteConfig, override: str) -> None:
    path = write_config()
    assert config_hash(load_config(path, overrides=[override]).config) == config_hash(load_config(path).config)


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "rollout.rollout_temperature=0.8",
        "rollout.prompt_data=/data/prompts.jsonl@[:10]",
        "rollout.prompt_data=/data/other.jsonl",
        "perf.context_parallel_size=2",
        "grpo.eps_clip=0.3",
        "optimizer.lr=2e-6",
        "sglang.attention_backend=fa3",
        "megatron.params_dtype=fp32",
    ],
)
def test_the_hash_follows_the_science(write_config: WriteConfig, override: str) -> None:
    path = write_config()
    assert config_hash(load_config(path, overrides=[override]).config) != config_hash(load_config(path).config)


def test_the_hash_stays_what_it_was(write_config: WriteConfig) -> None:
    # Runs on disk carry it: a change here is a change of what "the same experiment" means.
    hashed = config_hash(load_config(write_config()).config)
    assert hashed == "b8500afa9913"


def test_a_config_built_by_hand_is_as_strict_as_a_file() -> None:
    with pytest.raises(ValueError, match="valid integer"):
        Config.model_validate({"hosts": {"num_nodes": "2"}})
