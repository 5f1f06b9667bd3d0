"""Older names, flag spellings and the recipe's own words are understood, and each is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.config.aliases import ALIASES, VALUE_ALIASES
from r1hpc.config.owned import MODEL_ARGUMENTS
from r1hpc.config.schema import Config
from r1hpc.config.structure import section_fields
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

OLDER = """\
sglang:
  rollout_num_gpus_per_engine: 8
  sglang_enable_ep_moe: true
  enable_deepep_moe: true
  sglang-mem-fraction-static: 0.4
megatron:
  moe_enable_deepep: true
  --attention-dropout: 0.0
"""


def test_the_recipes_older_flags_mean_todays_values(write_config: WriteConfig) -> None:
    loaded = load_config(write_config(OLDER, append=True), environ={})
    sglang, megatron = loaded.config.sglang, loaded.config.megatron
    assert (sglang.ep_size, sglang.moe_a2a_backend, sglang.mem_fraction_static) == (8, "deepep", 0.4)
    assert megatron.moe_token_dispatcher_type == "flex"
    assert megatron.moe_flex_dispatcher_backend == "deepep"
    assert loaded.notices == (
        "config.yaml:21: sglang.sglang_enable_ep_moe is read as enable_ep_moe",
        "config.yaml:21: sglang.enable_ep_moe is an older name: read as sglang.ep_size = rollout_num_gpus_per_engine",
        "config.yaml:22: sglang.enable_deepep_moe is an older name: read as sglang.moe_a2a_backend = deepep",
        "config.yaml:23: sglang.sglang-mem-fraction-static is read as mem_fraction_static",
        "config.yaml:25: megatron.moe_enable_deepep is an older name: "
        "read as megatron.moe_token_dispatcher_type = flex, read as megatron.moe_flex_dispatcher_backend = deepep",
        "config.yaml:26: megatron.--attention-dropout is read as attention_dropout",
    )
    assert loaded.where("sglang.ep_size") == "config.yaml:21"


def test_experts_follow_the_engine_size_of_the_highest_layer(write_config: WriteConfig) -> None:
    path = write_config(OLDER, append=True)
    loaded = load_config(path, overrides=["sglang.rollout_num_gpus_per_engine=4"], environ={})
    assert loaded.config.sglang.ep_size == 4


def test_experts_follow_the_default_engine_size_where_none_is_set(write_config: WriteConfig) -> None:
    loaded = load_config(write_config(), overrides=["sglang.enable_ep_moe=true"], environ={})
    assert loaded.config.sglang.ep_size == 1


def test_an_older_name_above_overrides_the_newer_one_below(write_config: WriteConfig) -> None:
    path = write_config("sglang: {moe_runner_backend: triton, rollout_num_gpus_per_engine: 8}\n", append=True)
    overrides = ["sglang.sglang_enable_flashinfer_cutlass_moe=true", "hosts.slot=4"]
    loaded = load_config(path, overrides=overrides, environ={})
    assert loaded.config.sglang.passed_through == {"moe_runner_backend": "flashinfer_cutlass"}
    assert loaded.config.hosts.gpus_per_node == 4


def test_a_file_that_gives_both_names_means_the_newer_one(write_config: WriteConfig) -> None:
    text = "sglang:\n  ep_size: 2\n  rollout_num_gpus_per_engine: 8\n  enable_ep_moe: true\n"
    loaded = load_config(write_config(text, append=True), environ={})
    assert loaded.config.sglang.ep_size == 2
    assert loaded.notices == (
        "config.yaml:22: sglang.enable_ep_moe is an older name: "
        "sglang.ep_size, which config.yaml:20 sets itself, is taken",
    )


def test_the_recipes_filter_path_is_ours(write_config: WriteConfig) -> None:
    filters = "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std"
    loaded = load_config(write_config(), overrides=[f"rollout.dynamic_sampling_filter_path={filters}"], environ={})
    assert loaded.config.rollout.dynamic_sampling_filter_path == "r1hpc.rollout.filters.check_reward_nonzero_std"
    assert len(loaded.notices) == 1


def test_what_has_no_effect_is_said(write_config: WriteConfig) -> None:
    text = "cast:\n  MP_PP0_LAYERS: 5\nmegatron:\n  moe_grouped_gemm: true\nperf:\n  micro-batch-size: 1\n"
    text += "convert:\n  tensor_model_parallel_size: 1\nsglang:\n  enable_deepep_moe: false\n"
    loaded = load_config(write_config(text, append=True), environ={})
    assert loaded.notices == (
        "config.yaml:20: cast.MP_PP0_LAYERS is read as mp_pp0_layers",
        "config.yaml:20: cast.mp_pp0_layers is accepted without effect: "
        "only Pai-Megatron-Patch's older converters read it, the cast never did",
        "config.yaml:22: megatron.moe_grouped_gemm is accepted without effect: "
        "experts are always computed as one grouped product",
        "config.yaml:24: perf.micro-batch-size is read as micro_batch_size",
        "config.yaml:24: perf.micro_batch_size is accepted without effect: "
        "micro-batches are packed to max_tokens_per_gpu",
        "config.yaml:26: convert.tensor_model_parallel_size is accepted without effect: "
        "the conversion slices by pipeline and expert",
        "config.yaml:28: sglang.enable_deepep_moe = false has no effect: leave it out",
    )


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "convert.tensor_model_parallel_size=2",
            "only 1 is accepted: the conversion slices by pipeline and expert",
        ),
        ("hosts.colocate=false", "only true is accepted: training and rollout always share the GPUs"),
        ("sglang.enable_ep_moe=8", "only true is accepted"),
        (
            "convert.expert_tensor_parallel_size=true",
            "only 1 is accepted: the conversion slices by pipeline and expert",
        ),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(write_config: WriteConfig, override: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=[override], environ={})
    assert caught.value.problems == [f"--set {override}: {problem}"]


def test_a_spelling_that_means_nothing_is_reported_as_written(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config("ckpt-args:\n  save: /x\nperf:\n  Zzz-zz: 1\n", append=True), environ={})
    assert [problem.partition("; ")[0] for problem in caught.value.problems] == [
        "config.yaml:19: ckpt-args: unknown section",
        "config.yaml:22: perf.Zzz-zz = 1: unknown key",
    ]


def test_the_table_leads_from_keys_that_are_gone_to_keys_that_are_there() -> None:
    assert len({alias.old for alias in ALIASES}) == len(ALIASES) > 20
    for alias in ALIASES:
        section, _, name = alias.old.partition(".")
        assert section in Config.model_fields
        assert name not in section_fields(section), alias.old
        assert alias.sets or alias.why, alias.old
        for key in alias.sets:
            target, _, field = key.partition(".")
            # A key of the schema, or an argument that passes through: test_libraries looks for those.
            assert field in section_fields(target) or target in ("sglang", "megatron"), key
    assert {key.partition(".")[0] for key, _ in VALUE_ALIASES} <= Config.model_fields.keys()
    assert not any(name in section_fields(section) for name in MODEL_ARGUMENTS for section in Config.model_fields)


def test_two_spellings_of_one_key_are_told(write_config: WriteConfig) -> None:
    text = "sglang:\n  dp_size: 1\n  sglang_dp_size: 2\n"
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(text, append=True), environ={})
    assert caught.value.problems == [
        "config.yaml:21: sglang.sglang_dp_size: given twice, as dp_size at config.yaml:20 too; keep one"
    ]
