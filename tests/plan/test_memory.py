"""GPU and host memory, phase by phase and stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.plan import Plan, plan_for, render_plan
from r1hpc.plan.assumptions import assumptions_for
from r1hpc.plan.memory import MemoryPart, MemoryUse

PlanWith = Callable[..., Plan]
G = 1e9
GPU1 = Path(__file__).parents[2] / "configs" / "gpu1.yaml"
ON_GPUS = ("hosts.device=cuda", "hosts.gpu_memory_gib=80", "hosts.host_memory_gib=200", "megatron.params_dtype=bf16")


def story(plan: Plan) -> str:
    """What people read of it, as one line."""
    return " ".join(render_plan(plan).split())


def named(use: MemoryUse, name: str) -> int:
    return next((part.bytes for part in use.parts if part.name == name), 0)


def test_saved_layer_inputs_follow_the_pipeline_depth(r1_plan: Plan) -> None:
    """Stage i holds 4 - i micro-batches: for each layer, the bf16 hidden states of 16384 / TP 8 tokens."""
    token = 7168 * 2
    per_layer = 16_384 // 8 * token
    expected = [4 * 16 * per_layer, 3 * 16 * per_layer, 2 * 16 * per_layer, 1 * 13 * per_layer]
    assert [named(use, "saved layer inputs") for use in r1_plan.phase("train").stages] == expected


def test_the_layer_in_work_by_hand(r1_plan: Plan) -> None:
    """Of R1 on 128 GPUs a GPU sends 16,384 rows to experts and the busiest receives twice as many; it has 8 experts."""
    tokens, shard, heads, hidden, inner = 16_384, 2_048, 16, 7168, 2048
    attention = heads * (192 + 128) * (tokens + 4 * tokens) + shard * (3 * hidden + 2 * 1536 + 2 * 576)
    sent, received = shard * 8, 2 * shard * 8
    experts = received * (hidden + 3 * inner) + tokens * 3 * inner // 8
    moving = (sent + 3 * received) * hidden + 8 * 2 * inner * hidden
    assert named(r1_plan.phase("train").stages[1], "layer in work") == 2 * (attention + experts + moving)


def test_logits_are_a_chunk_on_the_last_stage_only(r1_plan: Plan, plan_r1: PlanWith) -> None:
    stages = r1_plan.phase("train").stages
    assert [named(use, "logits") for use in stages[:3]] == [0, 0, 0]
    hidden = 16_384 * 7168 * 2
    assert named(stages[3], "logits") == 4 * 1024 * 16_160 * 4 + hidden
    whole = plan_r1("perf.log_probs_chunk_size=16384").phase("train").stages[3]
    # unchunked, one copy is 16384 * 129280/8 * 4 B = 1.06 GB
    assert (named(whole, "logits") - hidden) / 4 == pytest.approx(1.06 * G, rel=2e-3)


def test_a_sample_longer_than_the_cap_gets_a_micro_batch_of_its_own(plan_r1: PlanWith) -> None:
    plan = plan_r1("perf.max_tokens_per_gpu=4096", "rollout.rollout_max_response_len=32768")
    assert plan.batches.micro_batch_tokens == 4 * 4096
    assert plan.batches.tokens_per_gpu == 32_768 // 4
    assert named(plan.phase("train").stages[3], "saved layer inputs") == 13 * (8192 // 8) * 7168 * 2


def test_sharding_over_data_parallel_ranks_halves_the_dense_optimizer_state(r1_plan: Plan, plan_r1: PlanWith) -> None:
    doubled = plan_r1("hosts.num_nodes=32")
    experts, dense = 5_637_144_576, 703_856_640
    one = next(host for host in r1_plan.hosts if host.stages == (1,))
    two = next(host for host in doubled.hosts if host.stages == (1,))
    assert one.optimizer_parameters == 8 * (experts + dense // 4)
    assert two.optimizer_parameters == 8 * (experts // 2 + dense // 8)


def test_both_costs_of_a_sleeping_trainer_are_charged(r1_plan: Plan) -> None:
    rebuilt, kept = r1_plan.trainer_asleep
    assert rebuilt == 5e9
    assert kept == 18e9
    assert named(r1_plan.phase("rollout").worst, "sleeping trainer") == rebuilt


def test_process_groups_are_kept_on_a_small_world(plan_rehearsal: PlanWith) -> None:
    plan = plan_rehearsal(*ON_GPUS, "perf.process_groups=auto")
    assert not plan.groups_rebuilt
    # 8 GPUs: 7/127 of the way from what one keeps to what 128 keep, of the process and of NCCL's buffers
    process, buffers = 1.1e9 + 7 / 127 * 3.9e9, 2.9e9 + 7 / 127 * 10.1e9
    assert named(plan.phase("rollout").worst, "sleeping trainer") == pytest.approx(process + buffers)
    assert "the trainer keeps 4.77 GB with its process groups kept; with them destroyed" in story(plan)


def test_the_configuration_decides_what_becomes_of_process_groups(plan_rehearsal: PlanWith, plan_r1: PlanWith) -> None:
    rebuilt = plan_rehearsal(*ON_GPUS, "perf.process_groups=rebuild")
    assert rebuilt.groups_rebuilt
    assert named(rebuilt.phase("rollout").worst, "sleeping trainer") == pytest.approx(1.1e9 + 7 / 127 * 3.9e9)
    kept = plan_r1("perf.process_groups=keep")
    assert not kept.groups_rebuilt
    assert named(kept.phase("rollout").worst, "sleeping trainer") == 18e9
    # What the other choice says that a rollout would need: 13 GB more.
    assert f"a rollout would need {kept.phase('rollout').worst.total_bytes / 1e9:.1f} GB" in story(plan_r1())


def test_groups_of_one_gpu_and_of_many_are_as_measured_and_between_on_a_line() -> None:
    groups = assumptions_for("cuda").trainer_groups
    assert [groups.of(gpus) / G for gpus in (1, 128, 1024)] == [2.9, 13, 13]
    assert groups.of(64) / G == pytest.approx(2.9 + 63 / 127 * 10.1)


def test_on_one_gpu_a_sleeping_side_keeps_what_was_measured() -> None:
    """A trainer 3.76 GB with its groups, an engine 1.18 GB (docs/performance.md)."""
    plan = plan_for(load_config(GPU1))
    (train,), (rollout,) = plan.phase("train").stages, plan.phase("rollout").stages
    assert named(train, "sleeping engine") == pytest.approx(1.18 * G, rel=0.15)
    assert named(rollout, "sleeping trainer") == pytest.approx(3.76 * G, rel=0.15)
    # Six layers of the width of 2,048: no engine of R1.
    assert named(rollout, "CUDA graphs") < 1 * G and named(rollout, "prefill activations") < 1 * G


def test_the_buckets_of_a_sync_are_two_turns_or_the_embedding_and_one(r1_plan: Plan, plan_r1: PlanWith) -> None:
    assert named(r1_plan.phase("sync").worst, "sync buckets") == 129_280 * 7168 * 2 + 512 * 2**20 <= 2.4e9
    larger = plan_r1("sync.bucket_mib=1024")
    assert named(larger.phase("sync").worst, "sync buckets") == 4 * 2**30


def test_an_engine_that_is_started_again_in_a_rollout_takes_a_sync_beside_the_others(
    r1_plan: Plan, plan_r1: PlanWith
) -> None:
    sync = named(r1_plan.phase("sync").worst, "sync buckets")
    assert named(r1_plan.phase("rollout").worst, "sync of one engine") == sync + 2 * 410_000_000
    alone = plan_r1("sglang.rollout_num_gpus_per_engine=128", "sglang.ep_size=128", "sglang.dp_size=16")
    assert alone.engine.num_engines == 1
    assert named(alone.phase("rollout").worst, "sync of one engine") == 0


def test_a_rehearsal_keeps_both_sides_in_the_memory_of_the_host(rehearsal_plan: Plan) -> None:
    train = rehearsal_plan.phase("train").stages[0]
    assert named(train, "engine process") == 1_260_000_000
    assert named(train, "trainer process") == 500_000_000
    host = rehearsal_plan.hosts[0]
    slots = named(host.use, "logical slots")
    assert slots == 2 * max(phase.stages[0].total_bytes for phase in rehearsal_plan.phases)
    assert host.use.total_bytes == rehearsal_plan.host_bytes_needed < 4 * 2**30


def test_a_node_with_several_stages_adds_them(plan_rehearsal: PlanWith) -> None:
    plan = plan_rehearsal("hosts.num_nodes=2", "hosts.gpus_per_node=8", "hosts.host_memory_gib=16")
    spread = plan_rehearsal("hosts.num_nodes=1", "hosts.gpus_per_node=8", "hosts.host_memory_gib=16")
    assert [host.stages for host in plan.hosts] == [(0,), (1,)]
    assert [host.stages for host in spread.hosts] == [(0, 1)]
    by_stage = [4 * stage.parameters * 4 for stage in spread.stages]
    assert named(spread.hosts[0].use, "reference weights") == sum(by_stage)


def test_host_bytes_of_each_stage_are_those_of_its_fullest_node(r1_plan: Plan) -> None:
    totals = [host.use.total_bytes for host in r1_plan.hosts]
    assert r1_plan.host_bytes_per_node == tuple(totals)
    assert r1_plan.host_bytes_needed == max(totals) == totals[1]


def test_an_engine_backup_is_charged_when_asked_for(plan_r1: PlanWith) -> None:
    plan = plan_r1("sglang.enable_weights_cpu_backup=true")
    assert named(plan.hosts[0].use, "engine weights backup") == 8 * plan.engine.weight_bytes


def test_the_needs_are_the_largest_of_all(r1_plan: Plan) -> None:
    assert r1_plan.gpu_bytes_needed == max(use.total_bytes for phase in r1_plan.phases for use in phase.stages)
    assert r1_plan.phase("train").worst_stage == 1


def test_a_use_fits_up_to_its_limit() -> None:
    parts = (MemoryPart("a", 60), MemoryPart("b", 40))
    assert MemoryUse(parts, 100).fits
    assert not MemoryUse(parts, 99).fits
    assert [part.name for part in MemoryUse(parts, 100).largest(1)] == ["a"]
