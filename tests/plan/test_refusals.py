"""What a plan refuses: the arithmetic, the key and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.config import Config, load_config
from r1hpc.plan import ModelShape, Plan, PlanError, plan_for, plan_problems

ROOT = Path(__file__).parents[2]
PlanWith = Callable[..., Plan]


def refusal(plan: PlanWith, *overrides: str) -> str:
    with pytest.raises(PlanError) as caught:
        plan(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["hosts.num_nodes=15", "sglang.rollout_num_gpus_per_engine=8", "sglang.ep_size=8", "sglang.dp_size=1"],
            "perf: tp(8) * cp(4) * pp(4) = 128 does not divide 15 nodes * 8 GPUs = 120; change the sizes or"
            " hosts.num_nodes (16 nodes * 8 GPUs would do)",
        ),
        (
            ["perf.expert_model_parallel_size=64"],
            "perf: etp(1) * ep(64) * pp(4) = 256 does not divide 16 nodes * 8 GPUs = 128",
        ),
        (
            ["perf.expert_model_parallel_size=24"],
            "expert_model_parallel_size 24 does not divide the 256 experts of the model",
        ),
        (
            ["perf.decoder_last_pipeline_num_layers=14"],
            "perf, pipeline stages: 61 layers - last(14) = 47 cannot be shared evenly by 3 other stages;"
            " a last stage of 13 or 16 layers would",
        ),
        (
            ["perf.sequence_parallel=false"],
            "experts with tensor_model_parallel_size 8 need sequence_parallel: true",
        ),
        (
            ["hosts.num_nodes=48", "sglang.rollout_num_gpus_per_engine=64"],
            "1024 samples / 4 steps = 256 a step do not divide over 3 data-parallel ranks"
            " (384 GPUs / (tp * cp * pp = 128))",
        ),
        (
            ["sglang.rollout_num_gpus_per_engine=48", "sglang.ep_size=48", "sglang.dp_size=6"],
            "16 nodes * 8 GPUs = 128 do not divide into engines of 48 GPUs",
        ),
        (
            ["sglang.rollout_num_gpus_per_engine=48", "sglang.ep_size=48", "sglang.dp_size=6"],
            "ep_size 48 does not divide the model's 256 experts",
        ),
        (
            ["sglang.moe_dense_tp_size=null"],
            "dense MLP width 18432 / 64 GPUs = 288 is no multiple of the fp8 block 128; set it to 1",
        ),
        (
            ["sglang.moe_a2a_backend=none"],
            "shared expert width 2048 / 64 GPUs = 32 is no multiple of the fp8 block 128; set it to deepep",
        ),
        (
            ["rollout.rollout_max_response_len=163840", "rollout.rollout_max_prompt_len=1"],
            "prompts of up to 1 tokens + responses of up to 163840 = 163841, more than the model's 163840 positions",
        ),
        (
            ["convert.expert_model_parallel_size=3"],
            "convert: expert_model_parallel_size 3 does not divide 256 experts",
        ),
        (
            ["convert.num_tasks=33"],
            "convert: 33 tasks for 8 pipeline * 4 expert slices = 32; at least 1 would have nothing to do",
        ),
        (
            ["convert.decoder_last_pipeline_num_layers=7"],
            "convert, pipeline slices: 61 layers - first(7) - last(7) = 47 cannot be shared evenly by 6 other stages",
        ),
    ],
)
def test_numbers_that_do_not_divide(plan_r1: PlanWith, overrides: list[str], words: str) -> None:
    assert words in refusal(plan_r1, *overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["perf.tensor_model_parallel_size=8"], "tensor_model_parallel_size 8 does not divide the model's attention"),
        (["hosts.gpus_per_node=3", "hosts.num_nodes=3"], "= 8 does not divide 3 nodes * 3 GPUs = 9"),
        (
            ["hosts.gpus_per_node=4", "hosts.num_nodes=6", "sglang.rollout_num_gpus_per_engine=6"],
            "an engine of 6 GPUs fills no whole number of nodes of 4 GPUs, nor a part that divides one",
        ),
        (["perf.expert_tensor_parallel_size=3"], "expert_tensor_parallel_size 3 does not divide the model's expert"),
        (
            ["sglang.rollout_num_gpus_per_engine=8", "hosts.gpus_per_node=8"],
            "rollout_num_gpus_per_engine 8 / dp_size 1 = 8 GPUs cannot share the model's 4 attention heads evenly",
        ),
    ],
)
def test_numbers_that_do_not_divide_in_the_rehearsal(
    plan_rehearsal: PlanWith, overrides: list[str], words: str
) -> None:
    assert words in refusal(plan_rehearsal, *overrides)


def test_every_problem_is_told_at_once_with_file_and_line(plan_r1: PlanWith) -> None:
    with pytest.raises(PlanError) as caught:
        plan_r1("hosts.num_nodes=15", "perf.decoder_last_pipeline_num_layers=12", "convert.num_tasks=40")
    problems = caught.value.problems
    assert len(problems) == 5
    lines = (ROOT / "configs" / "r1.yaml").read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "tensor_model_parallel_size" in text)
    assert problems[0].startswith(f"{ROOT / 'configs' / 'r1.yaml'}:{line}: perf: tp(8)")
    assert any(problem.startswith("--set perf.decoder_last") for problem in problems)


def test_problems_carry_the_key_they_are_about(r1_shape: ModelShape) -> None:
    config = load_config(ROOT / "configs" / "r1.yaml", overrides=["hosts.num_nodes=15"]).config
    assert [problem.key for problem in plan_problems(config, r1_shape)] == [
        "perf.tensor_model_parallel_size",
        "perf.expert_model_parallel_size",
        "sglang.rollout_num_gpus_per_engine",
    ]


def test_a_configuration_that_fits_has_no_problems(r1_config: Config, r1_shape: ModelShape) -> None:
    assert plan_problems(r1_config, r1_shape) == ()


def test_optimizer_state_on_the_gpu_does_not_fit(plan_r1: PlanWith) -> None:
    text = refusal(plan_r1, "optimizer.optimizer_cpu_offload=false", "optimizer.overlap_cpu_optimizer_d2h_h2d=false")
    # 12 B * (5.637 B experts + 0.704 B dense / 4) = 69.8 GB
    assert "GPU memory, train, stage 1: weights 12.7 + gradients 25.4 + optimizer 69.8" in text
    assert "more than 82.4 GB a GPU (80 GiB as sold); turn optimizer.optimizer_cpu_offload on" in text


def test_a_rollout_that_leaves_the_trainer_no_room(plan_r1: PlanWith) -> None:
    text = refusal(plan_r1, "sglang.mem_fraction_static=0.85")
    assert "GPU memory, rollout" in text
    assert "lower sglang.mem_fraction_static" in text


def test_activations_without_recomputation_do_not_fit(plan_r1: PlanWith) -> None:
    text = refusal(
        plan_r1,
        "perf.recompute_granularity=null",
        "perf.recompute_method=null",
        "perf.recompute_num_layers=null",
    )
    assert "GPU memory, train, stage 0" in text
    assert "set perf.recompute_granularity: full" in text


def test_host_memory_names_the_nodes_and_the_reference(plan_r1: PlanWith) -> None:
    text = refusal(plan_r1, "hosts.host_memory_gib=900")
    assert "host memory of nodes 4-7: host Adam 744.1 + actor weights 101.5 + reference weights 101.5" in text
    assert "more than 966.4 GB a node; raise hosts.num_nodes, or drop grpo.use_kl_loss: its coefficient is 0" in text


def test_a_request_longer_than_the_cache(plan_r1: PlanWith) -> None:
    text = refusal(plan_r1, "sglang.mem_fraction_static=0.22")
    # 0.22 * (84.94 - 3.6) GB = 17.89 GB less 17.13 GB of weights: 0.76 GB / 70,272 B = 10.8 k tokens
    assert "the KV cache of an attention rank holds 10,8" in text
    assert "fewer than one request of 32,768" in text


def test_a_time_limit_shorter_than_a_save(plan_r1: PlanWith) -> None:
    text = refusal(plan_r1, "slurm.time_limit=12")
    # 9.394 TB / 20 GB/s = 469.7 s, and a quarter; 120 s of the step under way; 60 s of slack: 768 s
    assert "a save takes 470 s at run.file_system_gbps = 20, so Slurm must signal 768 s before the end" in text
    assert "time_limit = 720 s" in text


def test_a_lead_that_is_set_allows_a_short_time_limit(plan_r1: PlanWith) -> None:
    plan = plan_r1("slurm.time_limit=12", "slurm.signal_lead_minutes=5")
    assert plan.signal_lead_s == 300
    assert any("300 s is less than the 768 s" in warning for warning in plan.warnings)


def test_the_model_must_be_on_disk_or_given(plan_r1: PlanWith) -> None:
    assert "DeepSeek-R1 holds no config.json; fetch the checkpoint, or give ckpt.hf_config" in refusal(
        plan_r1, "ckpt.hf_config=null"
    )


def test_a_checkpoint_that_cannot_be_looked_at_is_named(plan_r1: PlanWith) -> None:
    """A name that no file system takes fails for root too, unlike a closed directory."""
    name = "n" * 300
    text = refusal(plan_r1, f"ckpt.hf_checkpoint={name}")
    assert f"{name}: file name too long; give a directory that this user can read" in text


def test_a_given_model_must_be_the_one_on_disk(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((ROOT / "configs/models/tiny-r1/config.json").read_text())
    loaded = load_config(ROOT / "configs" / "r1.yaml", overrides=[f"ckpt.hf_checkpoint={tmp_path}"])
    with pytest.raises(PlanError, match=r"is not the model in .*hidden_size 7168 against 128, num_layers 61 against 5"):
        plan_for(loaded)


def test_the_stored_copy_says_how_it_is_quantised(tmp_path: Path) -> None:
    text = (ROOT / "configs/models/deepseek-r1/config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"quantization_config": {', '"not_quantised": {'))
    overrides = [
        f"ckpt.hf_checkpoint={tmp_path}",
        "sglang.mem_fraction_static=0.6",
        f"ckpt.bf16_checkpoint={tmp_path / 'bf16'}",
    ]
    plan = plan_for(load_config(ROOT / "configs" / "r1.yaml", overrides=overrides))
    assert plan.engine.form.name == "bf16"
    # without blocks every weight doubles: 58 layers * 4 experts * 44.04 M * 2 B
    assert plan.engine.weights[0].bytes == 58 * 4 * 3 * 2048 * 7168 * 2
