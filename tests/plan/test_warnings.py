"""What a plan warns of without refusing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.plan import Plan

PlanWith = Callable[..., Plan]


def warning(plan: Plan, words: str) -> str | None:
    return next((text for text in plan.warnings if words in text), None)


def test_long_requests_will_be_retracted(r1_plan: Plan) -> None:
    text = warning(r1_plan, "KV cache")
    assert text is not None
    tokens = r1_plan.engine.kv_tokens_per_rank
    assert f"{tokens:,} tokens an attention rank for 128 requests = {tokens // 128:,} each" in text
    assert f"one may take 32,768; {tokens // 32_768} of full length fit" in text
    assert "sglang.dp_size 64, mem_fraction_static 0.7" in text


def test_short_responses_are_not_retracted(plan_r1: PlanWith) -> None:
    plan = plan_r1("rollout.rollout_max_response_len=2048")
    assert not plan.engine.retracts
    assert warning(plan, "KV cache") is None


def test_a_coefficient_of_zero_has_its_price(r1_plan: Plan, plan_r1: PlanWith) -> None:
    text = warning(r1_plan, "kl_loss_coef is 0")
    assert text is not None
    # 8 GPUs * 6.341 B * 2 B = 101.5 GB
    assert "101 GB of host memory a node, a forward pass over all 1,024 samples a rollout" in text
    assert warning(plan_r1("grpo.use_kl_loss=false"), "kl_loss_coef") is None
    assert warning(plan_r1("grpo.kl_loss_coef=0.001"), "kl_loss_coef") is None


def test_balancing_needs_data_parallel_ranks(r1_plan: Plan, plan_r1: PlanWith) -> None:
    text = warning(r1_plan, "balance_data")
    assert text is not None
    assert "128 GPUs / (tp * cp * pp) = 1 data-parallel rank; it matters from 256 GPUs on" in text
    assert warning(plan_r1("hosts.num_nodes=32"), "balance_data") is None


def test_an_interval_in_iterations_is_told_in_hours(plan_r1: PlanWith) -> None:
    # the published 1700 s a step: 20 * 28.33 min = 9.4 h
    text = warning(plan_r1("run.expected_rollout_minutes=28.333"), "ckpt.save_interval")
    assert text is not None
    assert "20 iterations * 28 minutes (run.expected_rollout_minutes) = 9.4 h at risk" in text
    assert "the clock commits every 150 minutes besides" in text


def test_an_estimated_iteration_is_called_one(r1_plan: Plan) -> None:
    text = warning(r1_plan, "ckpt.save_interval")
    assert text is not None
    assert "(estimated)" in text


def test_frequent_commits_are_no_exposure(plan_r1: PlanWith) -> None:
    assert warning(plan_r1("ckpt.save_interval=1"), "ckpt.save_interval") is None


def test_an_estimated_iteration_may_not_end_within_the_time_limit(plan_r1: PlanWith, r1_plan: Plan) -> None:
    text = warning(plan_r1("slurm.time_limit=50"), "slurm.time_limit 50 minutes")
    iteration = r1_plan.times.iteration
    assert text is not None
    assert iteration is not None
    # 949.7 s of start and 768 s of lead: 28.6 minutes besides the iteration
    low, high = iteration.low_minutes + 28.63, iteration.high_minutes + 28.63
    assert f"(a save takes 470 s at run.file_system_gbps = 20) = {low:.0f} to {high:.0f} minutes" in text
    assert high > 50
    assert warning(plan_r1("slurm.time_limit=58"), "slurm.time_limit") is None


def test_tensor_parallel_groups_that_span_nodes(plan_r1: PlanWith, r1_plan: Plan) -> None:
    text = warning(plan_r1("hosts.num_nodes=32", "hosts.gpus_per_node=4"), "tensor_model_parallel_size")
    assert text is not None
    assert "tensor_model_parallel_size 8 on nodes of 4 GPUs: 16 of 16 TP groups span up to 2 nodes" in text
    # 16,384 tokens of a context-parallel rank * 7168 * 2 B
    assert "moves 16,384 tokens * 7,168 * 2 B = 235 MB over the fabric" in text
    assert "a size that divides 4" in text
    assert warning(r1_plan, "tensor_model_parallel_size") is None


def test_logical_slots_have_no_nvlink(plan_rehearsal: PlanWith) -> None:
    plan = plan_rehearsal("hosts.num_nodes=8", "hosts.gpus_per_node=1")
    assert plan.topology.tp == 2
    assert warning(plan, "tensor_model_parallel_size") is None


def test_a_lead_shorter_than_a_save_is_told(plan_r1: PlanWith) -> None:
    text = warning(plan_r1("slurm.signal_lead_minutes=5"), "signal_lead_minutes")
    assert text == (
        "slurm.signal_lead_minutes 5 = 300 s is less than the 768 s that a save at the time limit needs: that save"
        " will be lost, the run goes on from the commit before it."
    )


def test_commits_further_apart_than_the_time_limit(plan_r1: PlanWith) -> None:
    assert warning(plan_r1("slurm.time_limit=120"), "time_limit is 120 minutes") is not None
    assert warning(plan_r1("slurm.time_limit=120", "ckpt.save_minutes=60"), "time_limit is 120 minutes") is None


def test_steps_that_split_groups(plan_r1: PlanWith) -> None:
    # 1024 samples / 256 steps = 4 a step, groups of 8
    text = warning(plan_r1("rollout.num_steps_per_rollout=256"), "split groups")
    assert text is not None
    assert text.startswith("4 samples a step split groups of 8")


@pytest.mark.parametrize(("concurrency", "waits"), [(512, True), (1024, False)])
def test_requests_that_wait(plan_r1: PlanWith, concurrency: int, waits: bool) -> None:
    text = warning(plan_r1(f"sglang.server_concurrency={concurrency}"), "server_concurrency")
    assert (text is not None) == waits
    if text:
        assert "lets 1,024 of the 2,048 requests of a wave run at once" in text
