"""What a plan refuses because it fits no GPU, host, cache or time limit, and the knob that it names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.plan import Plan

PlanWith = Callable[..., Plan]
Refusal = Callable[..., str]


def test_optimizer_state_on_the_gpu_does_not_fit(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "optimizer.optimizer_cpu_offload=false", "optimizer.overlap_cpu_optimizer_d2h_h2d=false")
    # 12 B * (5.637 B experts + 0.704 B dense / 4) = 69.8 GB
    assert "GPU memory, train, stage 1: weights 12.7 + gradients 25.4 + optimizer 69.8" in text
    assert "more than 82.4 GB a GPU (80 GiB as sold); turn optimizer.optimizer_cpu_offload on" in text


ONE_NODE = (
    "hosts.num_nodes=1",
    "perf.pipeline_model_parallel_size=1",
    "perf.decoder_last_pipeline_num_layers=null",
    "perf.context_parallel_size=1",
    "perf.expert_model_parallel_size=8",
    "sglang.rollout_num_gpus_per_engine=8",
    "sglang.ep_size=8",
)


def test_engine_weights_larger_than_a_gpu_want_a_larger_engine(plan_r1: PlanWith, refusal: Refusal) -> None:
    """No mem_fraction_static helps 671 GB of fp8 on 8 GPUs of 80 GiB: nothing may advise to turn it."""
    text = refusal(plan_r1, *ONE_NODE)
    assert "mem_fraction_static" not in text
    lines = [line for line in text.splitlines() if "GPU memory, rollout" in line or "GPU memory, sync" in line]
    assert len(lines) == 2
    for line in lines:
        assert "raise sglang.rollout_num_gpus_per_engine and hosts.num_nodes with it: it has all 8 GPUs" in line


def test_model_weights_larger_than_a_gpu_want_a_wider_grid(plan_r1: PlanWith, refusal: Refusal) -> None:
    """169.6 GB of weights on a GPU: no smaller micro-batch fits beside them."""
    line = next(line for line in refusal(plan_r1, *ONE_NODE).splitlines() if "GPU memory, train" in line)
    assert "raise perf.expert_model_parallel_size, pipeline_model_parallel_size or hosts.num_nodes" in line
    assert "max_tokens_per_gpu" not in line


def test_a_cache_that_no_fraction_makes_large_enough_wants_a_larger_engine(plan_r1: PlanWith, refusal: Refusal) -> None:
    # 46 GiB: 47.37 GB usable after fragmentation, 20.6 GB of graphs, groups and the trainer, 17.1 GB of weights:
    # 9.6 GB / 70,272 B = 137 k tokens, fewer than 160 k
    text = refusal(
        plan_r1,
        "hosts.gpu_memory_gib=46",
        "sglang.mem_fraction_static=0.5",
        "rollout.rollout_max_response_len=160000",
        "perf.max_tokens_per_gpu=8192",
    )
    line = next(line for line in text.splitlines() if "one request of 160,000" in line)
    assert "raise sglang.rollout_num_gpus_per_engine (now 64), or lower rollout_max_response_len" in line
    assert "mem_fraction_static" not in line.partition(": it could never finish")[2]


def test_a_limit_on_cached_tokens_is_the_knob_where_it_binds(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "sglang.max_total_tokens=16384")
    assert "holds 16,384 tokens, fewer than one request of 32,768" in text
    assert "raise max_total_tokens (now 16,384), or lower rollout_max_response_len" in text
    assert "mem_fraction_static" not in text


@pytest.mark.parametrize("fraction", ["0.1", "0.01"])
def test_a_fraction_that_leaves_no_cache_at_all(plan_r1: PlanWith, fraction: str, refusal: Refusal) -> None:
    text = refusal(plan_r1, f"sglang.mem_fraction_static={fraction}")
    assert "holds 0 tokens" in text
    assert f"raise mem_fraction_static (now {fraction}, engine weights 17.1 GB a GPU)" in text


def test_a_rollout_that_leaves_the_trainer_no_room(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "sglang.mem_fraction_static=0.85")
    assert "GPU memory, rollout" in text
    assert "lower sglang.mem_fraction_static" in text


def test_activations_without_recomputation_do_not_fit(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(
        plan_r1,
        "perf.recompute_granularity=null",
        "perf.recompute_method=null",
        "perf.recompute_num_layers=null",
    )
    assert "GPU memory, train, stage 0" in text
    assert "set perf.recompute_granularity: full" in text


def test_dropping_the_reference_alone_is_not_offered_where_it_is_not_enough(
    plan_r1: PlanWith, refusal: Refusal
) -> None:
    text = refusal(plan_r1, "hosts.host_memory_gib=700")
    assert "raise hosts.num_nodes, and drop grpo.use_kl_loss: its coefficient is 0" in text


def test_host_memory_names_the_nodes_and_the_reference(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "hosts.host_memory_gib=750")
    assert "host memory of nodes 4-7: host Adam 558.1 + host Adam staging 1.1 + actor weights 101.5 + " in text
    assert " + reference weights 101.5 + " in text
    assert "more than 805.3 GB a node; raise hosts.num_nodes, or drop grpo.use_kl_loss: its coefficient is 0" in text


def test_a_request_longer_than_the_cache(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "sglang.mem_fraction_static=0.22")
    # 0.22 * (84.94 - 3.6) GB = 17.89 GB less 17.13 GB of weights: 0.76 GB / 70,272 B = 10.8 k tokens
    assert "the KV cache of an attention rank holds 10,8" in text
    assert "fewer than one request of 32,768" in text


def test_a_time_limit_shorter_than_a_save(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "slurm.time_limit=12")
    # 9.394 TB / 20 GB/s = 469.7 s, and a quarter; 120 s of the step under way; 60 s of slack: 768 s
    assert "the signal's lead of 768 s (a save takes 470 s at run.file_system_gbps = 20)" in text
    assert "time_limit = 720 s" in text


def test_a_time_limit_of_24_minutes_that_was_meant_as_a_day(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "slurm.time_limit=24:00")
    # bring-up 480 s and 469.7 s to read a commit; the lead of 768 s: 1717.7 s, 28.6 minutes
    assert "a start of 950 s (470 s of it to read a commit) + the signal's lead of 768 s" in text
    assert "= 1718 s, but time_limit = 1440 s (Slurm reads 24:00 as 24 minutes, 24:00:00 as a day)" in text
    assert "raise time_limit to 29 minutes or more, or set a shorter slurm.signal_lead_minutes" in text
    plan_r1("slurm.time_limit=29")


def test_a_measured_iteration_must_end_within_the_time_limit(plan_r1: PlanWith, refusal: Refusal) -> None:
    # 949.7 + 60 * 28 + 768 = 3397.7 s: 56.6 minutes
    text = refusal(plan_r1, "slurm.time_limit=56", "run.expected_rollout_minutes=28")
    assert "+ an iteration of 1680 s (run.expected_rollout_minutes) +" in text
    assert "= 3398 s, but time_limit = 3360 s" in text
    assert "raise time_limit to 57 minutes or more" in text
    plan_r1("slurm.time_limit=57", "run.expected_rollout_minutes=28")


def test_a_shorter_lead_is_offered_only_where_it_helps(plan_r1: PlanWith, refusal: Refusal) -> None:
    # the start alone takes 950 of 900 s
    assert "signal_lead_minutes" not in refusal(plan_r1, "slurm.time_limit=15")


def test_a_rehearsal_may_be_short_but_not_shorter_than_its_bring_up(plan_rehearsal: PlanWith, refusal: Refusal) -> None:
    # 60 s of bring-up, 0.1 s to read a commit, a lead of 60 s
    plan_rehearsal("slurm.time_limit=3", "slurm.signal_lead_minutes=1")
    text = refusal(plan_rehearsal, "slurm.time_limit=2", "slurm.signal_lead_minutes=1")
    assert "the signal's lead of 60 s (slurm.signal_lead_minutes) = 120 s, but time_limit = 120 s" in text


def test_a_lead_that_is_set_allows_a_short_time_limit(plan_r1: PlanWith) -> None:
    plan = plan_r1("slurm.time_limit=22", "slurm.signal_lead_minutes=5")
    assert plan.signal_lead_s == 300
    assert any("300 s is less than the 768 s" in warning for warning in plan.warnings)
