"""Engines: grids, weights and cache."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.plan import Plan

PlanWith = Callable[..., Plan]


def weight(plan: Plan, name: str) -> int:
    return next(part.bytes for part in plan.engine.weights if part.name == name)


def test_without_dp_attention_the_whole_engine_is_one_rank(plan_r1: PlanWith) -> None:
    plan = plan_r1(
        "sglang.enable_dp_attention=false",
        "sglang.dp_size=1",
        "sglang.enable_dp_lm_head=false",
        "rollout.rollout_max_response_len=8192",
    )
    assert (plan.engine.grid.dp_size, plan.engine.grid.attention) == (1, 64)
    assert plan.engine.requests_per_rank == 1024
    assert plan.engine.kv_tokens_per_engine == plan.engine.kv_tokens_per_rank
    assert plan.alternatives == ()


def test_one_gpu_a_rank_keeps_attention_whole(plan_r1: PlanWith) -> None:
    plan = plan_r1("sglang.dp_size=64")
    attention = 61 * (187_105_280 + 2 * 2048)
    assert weight(plan, "attention") == pytest.approx(attention, rel=1e-3)
    assert plan.engine.requests_per_rank == 16
    assert weight(plan, "embedding, head") == 2 * 2 * 129_280 * 7168


def test_the_configured_alternative_is_what_its_own_plan_gives(r1_plan: Plan, plan_r1: PlanWith) -> None:
    offered = next(
        other for other in r1_plan.alternatives if other.settings.endswith("dp_size 64, mem_fraction_static 0.7")
    )
    taken = plan_r1("sglang.dp_size=64", "sglang.mem_fraction_static=0.7").engine
    assert offered.tokens_per_engine == taken.kv_tokens_per_engine
    assert offered.tokens_per_request == taken.tokens_per_request


def test_only_settings_that_fit_beside_the_trainer_are_offered(plan_r1: PlanWith) -> None:
    """0.7 of a 60 GiB GPU (63.7 GB usable, 61.8 after fragmentation): 42.1 GB, and 20.6 GB of other things."""
    plan = plan_r1("hosts.gpu_memory_gib=60", "sglang.mem_fraction_static=0.6", "perf.max_tokens_per_gpu=8192")
    assert [other.settings for other in plan.alternatives] == ["sglang.dp_size 64, mem_fraction_static 0.6"]


def test_the_head_is_spread_over_the_engine_without_dp_lm_head(plan_r1: PlanWith) -> None:
    plan = plan_r1("sglang.enable_dp_lm_head=false")
    table = 2 * 129_280 * 7168
    assert weight(plan, "embedding, head") == table // 8 + table // 64


def test_a_limit_on_running_requests_holds(plan_r1: PlanWith) -> None:
    assert plan_r1("sglang.max_running_requests=256").engine.requests_per_rank == 32


def test_a_limit_on_cached_tokens_holds(plan_r1: PlanWith) -> None:
    plan = plan_r1("sglang.max_total_tokens=100000")
    assert plan.engine.kv_tokens_per_rank == 100_000
    assert plan.engine.kv_bytes == 100_000 * 70_272


def test_a_cpu_engine_holds_float32_and_the_tokens_it_is_given(rehearsal_plan: Plan) -> None:
    engine = rehearsal_plan.engine
    assert engine.form.name == "fp32"
    assert engine.num_engines == 8
    assert engine.kv_bytes_per_token == (64 + 16) * 5 * 4
    assert engine.kv_tokens_per_rank == 8192
    assert weight(rehearsal_plan, "experts") == 4 * 8 * 3 * 64 * 128 * 4


def test_a_sync_to_cpu_engines_is_float32(rehearsal_plan: Plan) -> None:
    sync = rehearsal_plan.sync
    assert (sync.fp8_bytes, sync.scale_bytes) == (None, 0)
    experts = 4 * 8 * 3 * 64 * 128
    assert sync.expert_bytes_per_gpu == 4 * experts
    biases = 4 * 4 * 8
    assert sync.dense_bytes_per_gpu == 4 * (rehearsal_plan.parameters.total - experts) + biases


def test_engines_within_a_node(plan_rehearsal: PlanWith) -> None:
    plan = plan_rehearsal("sglang.rollout_num_gpus_per_engine=2")
    assert plan.engine.num_engines == 4
    assert [list(plan.engine_ranks(index)) for index in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [list(plan.engine_stages(index)) for index in range(4)] == [[0], [0], [1], [1]]


def test_a_limit_on_prompts_counts_towards_a_request(plan_r1: PlanWith) -> None:
    assert plan_r1("rollout.rollout_max_prompt_len=2048").engine.longest_request == 32_768 + 2_048
