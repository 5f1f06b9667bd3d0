"""Which layers the canary keeps, and its configuration; numbers worked by hand from the shipped configurations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc.canary.advice import ladder
from r1hpc.canary.bound import mismatch_bound
from r1hpc.canary.config import canary_config
from r1hpc.canary.layers import LayerCut, cut_layers
from r1hpc.canary.passed import is_wanted
from r1hpc.canary.reward import spread
from r1hpc.config import Config, load_config
from r1hpc.config.dump import dump_config
from r1hpc.plan.layers import split_layers
from r1hpc.plan.model_shape import ModelShape, read_model_shape
from r1hpc.plan.plan import Plan, make_plan
from r1hpc.rundir import CanaryDir

HOME = Path(__file__).parents[2]
CONFIGS = HOME / "configs"
PLACE = CanaryDir(Path("/runs/some/canary"))


def _loaded(name: str, *overrides: str) -> Config:
    return load_config(CONFIGS / name, overrides=overrides).config


def _shape(name: str) -> ModelShape:
    return read_model_shape(CONFIGS / "models" / name)


def _canary(config: Config, shape: ModelShape) -> Config:
    return canary_config(config, cut_layers(config, shape), PLACE)


def _plan(config: Config, shape: ModelShape) -> Plan:
    """Of the canary. Raises PlanError where the run's hosts could not carry it out."""
    cut = cut_layers(config, shape)
    kept = replace(shape, num_layers=cut.num_layers, num_mtp_layers=cut.mtp_layers)
    return make_plan(canary_config(config, cut, PLACE), kept)


def test_every_stage_of_r1_has_a_layer_with_experts() -> None:
    cut = cut_layers(_loaded("r1.yaml"), _shape("deepseek-r1"))
    assert cut == LayerCut(num_layers=7, first=4, last=None, mtp_layers=0)
    # Layers 0 to 2 are dense: 3 + 6 are the last of the first stage and the only ones of the others.
    assert split_layers(cut.num_layers, 4, cut.first, cut.last) == (4, 1, 1, 1)


def test_the_canary_of_r1_has_a_prompt_for_every_attention_rank() -> None:
    config, shape = _loaded("r1.yaml"), _shape("deepseek-r1")
    plan = _plan(config, shape)
    # 2 engines of 64 GPUs with 8 attention ranks each.
    assert (plan.batches.prompts, plan.batches.samples) == (16, 32)
    # 4 optimizer steps, as in the run; one data-parallel rank.
    assert (plan.batches.steps, plan.batches.samples_per_step) == (4, 8)
    assert [stage.num_layers for stage in plan.stages] == [4, 1, 1, 1]
    assert [stage.num_moe_layers for stage in plan.stages] == [1, 1, 1, 1]
    assert plan.batches.rollouts == 2 and plan.batches.longest_sample == 64
    # 4 layers of 256 experts of 44.04 M in fp8, attention of 7 layers, 3 dense MLPs of 396.4 M, 4 shared experts and
    # 4 routers of 1.8 M; embedding and head of 926.7 M in bf16: 45.1 + 1.3 + 1.2 + 0.2 + 3.7 = 51.5 GB.
    assert plan.storage.source_bytes == pytest.approx(51.5e9, rel=0.005)


def test_the_canary_of_the_rehearsal_trains_in_every_step_on_all_ranks() -> None:
    config, shape = _loaded("rehearsal.yaml"), _shape("arithmetic-r1")
    plan = _plan(config, shape)
    # 1 dense layer and one with experts for each of 2 stages; 2 engines, of 2 of the 4 slots; 2 steps.
    assert [stage.num_layers for stage in plan.stages] == [2, 1]
    assert (plan.batches.prompts, plan.batches.samples, plan.batches.samples_per_step) == (2, 4, 2)


def test_data_parallel_ranks_share_every_step() -> None:
    # 256 GPUs are 2 data-parallel ranks and 4 engines: 4 steps * 2 ranks = 8 shares, of 2 samples a prompt.
    config = _loaded("r1.yaml", "hosts.num_nodes=32", "rollout.num_steps_per_rollout=4")
    assert _canary(config, _shape("deepseek-r1")).rollout.rollout_batch_size == 32
    # 24 steps * 2 ranks = 48 shares: at least 24 prompts at a time, and 32 for the engines are two times that.
    config = _loaded(
        "r1.yaml", "hosts.num_nodes=32", "rollout.rollout_batch_size=96", "rollout.num_steps_per_rollout=24"
    )
    assert _canary(config, _shape("deepseek-r1")).rollout.rollout_batch_size == 48


def test_everything_that_is_not_about_size_is_the_runs() -> None:
    config = _loaded("r1.yaml")
    canary = _canary(config, _shape("deepseek-r1"))
    assert canary.sglang == config.sglang and canary.megatron == config.megatron and canary.hosts == config.hosts
    assert canary.optimizer == config.optimizer and canary.grpo == config.grpo
    changed = {"decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers"}
    assert canary.perf.model_dump(exclude=changed) == config.perf.model_dump(exclude=changed)
    assert canary.rollout.rollout_temperature == 0.8
    assert _canary(_loaded("rehearsal.yaml"), _shape("arithmetic-r1")).optimizer.lr == 1e-6
    assert canary.rollout.dynamic_sampling_filter_path is None and canary.rollout.rm_type is None
    assert canary.ckpt.hf_checkpoint == "/runs/some/canary/model" and canary.ckpt.load is None
    # Engines with fp8 start from the cut itself; the rehearsal's need its cast.
    assert canary.ckpt.bf16_checkpoint is None
    rehearsal = _canary(_loaded("rehearsal.yaml"), _shape("arithmetic-r1"))
    assert rehearsal.ckpt.bf16_checkpoint == "/runs/some/canary/model-bf16"


@pytest.mark.parametrize(("name", "model"), [("r1.yaml", "deepseek-r1"), ("rehearsal.yaml", "arithmetic-r1")])
def test_the_configuration_is_valid_as_a_file(name: str, model: str, tmp_path: Path) -> None:
    canary = _canary(_loaded(name), _shape(model))
    (tmp_path / "config.yaml").write_text(dump_config(canary))
    assert load_config(tmp_path / "config.yaml").config == canary


def test_a_draft_model_keeps_its_layer() -> None:
    config = _loaded("r1.yaml", "sglang.speculative_algorithm=EAGLE")
    cut = cut_layers(config, _shape("deepseek-r1"))
    assert cut.mtp_layers == 1
    assert cut.sources(_shape("deepseek-r1")) == {**{layer: layer for layer in range(7)}, 7: 61}


def test_a_model_of_few_layers_stays_whole() -> None:
    config = _loaded("rehearsal.yaml", "perf.decoder_last_pipeline_num_layers=1")
    assert cut_layers(config, replace(_shape("arithmetic-r1"), num_layers=3)) == LayerCut(3, None, 1, 0)


def test_it_is_tried_by_itself_on_gpus_of_several_nodes() -> None:
    assert is_wanted(_loaded("r1.yaml"))
    assert not is_wanted(_loaded("r1.yaml", "run.canary=never"))
    assert not is_wanted(_loaded("rehearsal.yaml"))
    assert is_wanted(_loaded("rehearsal.yaml", "run.canary=always"))
    assert not is_wanted(_loaded("rehearsal.yaml", "run.canary=always", "debug.replay_rollouts=/rollouts"))


def test_the_bound_is_that_of_the_precisions() -> None:
    r1, tiny = _shape("deepseek-r1"), _shape("arithmetic-r1")
    assert mismatch_bound(_loaded("r1.yaml"), r1).value == 0.10
    assert mismatch_bound(_loaded("r1.yaml", "sync.quantize=false"), r1).value == 0.03
    assert mismatch_bound(_loaded("rehearsal.yaml"), tiny).value == 0.01
    assert mismatch_bound(_loaded("rehearsal.yaml", "sync.quantize=false"), tiny).value == 1e-4
    assert mismatch_bound(_loaded("r1.yaml", "run.canary_max_mismatch=0.3"), r1).value == 0.3


def test_what_is_in_use_is_switched_off_one_after_another() -> None:
    config = _loaded("r1.yaml", "sglang.speculative_algorithm=EAGLE")
    assert [rung.split(":")[0] for rung in ladder(config)] == [
        "without multi-token prediction",
        "without CUDA graphs",
        "engines without DeepEP",
        "trainers without DeepEP",
    ]
    assert ladder(_loaded("rehearsal.yaml")) == ()


def test_other_responses_have_other_rewards() -> None:
    rewards = [spread(response, None, {}) for response in ("", "a", "b", "</think>4")]
    assert len(set(rewards)) == 4 and all(0 <= reward <= 1 for reward in rewards)
    assert spread("a", "another label", {"any": 1}) == rewards[1]
