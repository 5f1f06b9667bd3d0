"""What a plan refuses: the arithmetic, the key and where it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.config import Config, load_config
from r1hpc.plan import ModelShape, Plan, PlanError, plan_for, plan_problems

ROOT = Path(__file__).parents[2]
PlanWith = Callable[..., Plan]
Refusal = Callable[..., str]


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
def test_numbers_that_do_not_divide(plan_r1: PlanWith, overrides: list[str], words: str, refusal: Refusal) -> None:
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
        (
            ["sglang.rollout_num_gpus_per_engine=8", "hosts.gpus_per_node=8"],
            "rollout_num_gpus_per_engine 8 / dp_size 1 = 8 GPUs cannot share the model's 4 attention heads evenly",
        ),
    ],
)
def test_numbers_that_do_not_divide_in_the_rehearsal(
    plan_rehearsal: PlanWith, overrides: list[str], words: str, refusal: Refusal
) -> None:
    assert words in refusal(plan_rehearsal, *overrides)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("run.expected_rollout_minutes", "1e-28", "1e-28"),  # the others are bounded by their own types
    ],
)
def test_quantities_out_of_all_range_are_named(
    plan_r1: PlanWith, key: str, value: str, shown: str, refusal: Refusal
) -> None:
    assert f"{key} is {shown}; a plan takes 1e-06 to 1e+09" in refusal(plan_r1, f"{key}={value}")


@pytest.mark.parametrize(
    ("key", "ends"),
    [
        ("hosts.gpu_memory_gib", ("0.001", "1e6")),
        ("hosts.host_memory_gib", ("0.001", "1e6")),
        ("hosts.object_store_gib", ("0.001", "1e6")),
        ("run.file_system_gbps", ("0.001", "1e6")),
        ("run.mean_hours_between_interruptions", ("0.01", "1e6")),
        ("run.expected_rollout_minutes", ("1e-6", "1e9")),
    ],
)
def test_quantities_at_the_ends_of_the_range_are_planned_or_refused(
    plan_r1: PlanWith, key: str, ends: tuple[str, str]
) -> None:
    for value in ends:
        with contextlib.suppress(PlanError):
            plan_r1(f"{key}={value}")


@pytest.mark.parametrize(
    ("num_nodes", "advice"),
    [
        (65_535, " (65536 nodes * 8 GPUs would do)"),
        (23, " (16 nodes * 8 GPUs would do)"),
        (24, " (16 nodes * 8 GPUs would do)"),
        (25, " (32 nodes * 8 GPUs would do)"),
        (8, " (16 nodes * 8 GPUs would do)"),
        (7, ""),
    ],
)
def test_the_nearest_number_of_nodes_is_found_by_arithmetic(
    plan_r1: PlanWith, num_nodes: int, advice: str, refusal: Refusal
) -> None:
    """128 GPUs of a model copy are 16 nodes: multiples of 16, at most twice what was asked for."""
    assert f"change the sizes or hosts.num_nodes{advice}\n" in refusal(plan_r1, f"hosts.num_nodes={num_nodes}") + "\n"


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


def test_the_model_must_be_on_disk_or_given(plan_r1: PlanWith, refusal: Refusal) -> None:
    assert "DeepSeek-R1 holds no config.json; fetch the checkpoint, or give ckpt.hf_config" in refusal(
        plan_r1, "ckpt.hf_config=null"
    )


def test_a_checkpoint_that_cannot_be_looked_at_is_named(plan_r1: PlanWith, refusal: Refusal) -> None:
    """A name that no file system takes fails for root too, unlike a closed directory."""
    name = "n" * 300
    text = refusal(plan_r1, f"ckpt.hf_checkpoint={name}", "ckpt.hf_config=null")
    assert f"{name}: file name too long; give a directory that this user can read, or ckpt.hf_config" in text


def test_a_given_model_stands_in_for_a_checkpoint_that_cannot_be_looked_at(plan_r1: PlanWith) -> None:
    assert plan_r1(f"ckpt.hf_checkpoint={'n' * 300}").world_size == 128


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
