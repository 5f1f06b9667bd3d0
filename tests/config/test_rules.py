"""Rules between keys: each is broken on its own, with the numbers worked by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

PRODUCT = "rollout_batch_size(4) * n_samples_per_prompt(8) = 32"

BROKEN = [
    (
        ["rollout.num_steps_per_rollout=3"],
        f"--set rollout.num_steps_per_rollout=3: {PRODUCT} samples do not divide into 3 steps",
    ),
    (
        ["rollout.global_batch_size=24"],
        f"--set rollout.global_batch_size=24: {PRODUCT} samples do not divide into steps of 24",
    ),
    (
        ["rollout.num_steps_per_rollout=4", "rollout.global_batch_size=16"],
        f"--set rollout.global_batch_size=16: {PRODUCT}, "
        "over 4 steps that is 8 samples a step; leave one of the two out",
    ),
    (
        ["rollout.over_sampling_batch_size=3"],
        "--set rollout.over_sampling_batch_size=3: "
        "must be at least rollout_batch_size(4): one wave submits all the prompts that are kept",
    ),
    (
        ["rollout.rm_type=null"],
        "--set rollout.rm_type=null: no reward: set rm_type (deepscaler, math_verify, exact) or custom_rm_path",
    ),
    (
        ["rollout.custom_rm_path=my.reward"],
        "--set rollout.custom_rm_path=my.reward: rm_type is deepscaler: one reward only, leave one of them out",
    ),
    (
        ["rollout.label_key=null"],
        "config.yaml:14: rollout.rm_type = deepscaler: compares with a label: set label_key to its key in prompt_data",
    ),
    (["rollout.rollout_top_k=0"], "--set rollout.rollout_top_k=0: must be -1 (off) or at least 1"),
    (
        ["rollout.n_samples_per_prompt=1"],
        "--set rollout.n_samples_per_prompt=1: "
        "grpo subtracts the mean of the group: with 1 sample every advantage is 0; take 2 or more",
    ),
    (
        ["eval.eval_interval=5"],
        "--set eval.eval_interval=5: nothing to evaluate: set eval_prompt_data (name: path) as well",
    ),
    (
        ["grpo.kl_coef=0.1", "grpo.kl_loss_coef=0.2", "grpo.use_kl_loss=true"],
        "--set grpo.kl_coef=0.1: kl_loss_coef(0.2) is above 0 too, and KL would count twice; set one of them to 0",
    ),
    (["grpo.kl_loss_coef=0.2"], "--set grpo.kl_loss_coef=0.2: has no effect without use_kl_loss: true"),
    (
        ["grpo.ref_logprob_interval=2", "grpo.kl_coef=0.1"],
        "--set grpo.ref_logprob_interval=2: "
        "above 1 only where kl_loss_coef(0.0) and kl_coef(0.1) are both 0: KL is trained on",
    ),
    (
        ["grpo.use_tis=true", "grpo.use_rollout_logprobs=true"],
        "--set grpo.use_tis=true: use_rollout_logprobs makes the rollout's log-probs the old ones: "
        "the ratio of use_tis is always 1; leave one of them out",
    ),
    (
        ["ckpt.ref_load=null", "grpo.use_kl_loss=true"],
        "--set ckpt.ref_load=null: the reference is needed: use_kl_loss or kl_coef > 0 is set; give its directory",
    ),
    (
        ["ckpt.ref_load=null"],
        "--set ckpt.ref_load=null: nothing to start from: set ref_load, or load to a directory with commits",
    ),
    (
        ["ckpt.save=/models/ref/"],
        "--set ckpt.save=/models/ref/: is also ref_load: one would overwrite the other; give it its own directory",
    ),
    (
        ["ckpt.bf16_checkpoint=/models/hf"],
        "--set ckpt.bf16_checkpoint=/models/hf: "
        "is also hf_checkpoint: one would overwrite the other; give it its own directory",
    ),
    (
        ["ckpt.save=/runs/small/"],
        "--set ckpt.save=/runs/small/: is the run directory itself, and commits need a directory of their own; "
        "leave save out: they go to /runs/small/checkpoints",
    ),
    (
        ["ckpt.save=/runs"],
        "--set ckpt.save=/runs: is above the run directory /runs/small, and commits need a directory of their own; "
        "leave save out: they go to /runs/small/checkpoints",
    ),
    (
        ["perf.recompute_granularity=full", "perf.recompute_num_layers=1"],
        "--set perf.recompute_granularity=full: full also needs recompute_method",
    ),
    (
        [
            "perf.recompute_granularity=selective",
            "megatron.recompute_modules=[moe]",
            "perf.recompute_method=block",
        ],
        "--set perf.recompute_method=block: only with recompute_granularity: full; leave it out",
    ),
    (
        ["perf.use_dynamic_batch_size=true"],
        "--set perf.use_dynamic_batch_size=true: needs max_tokens_per_gpu, the tokens of a micro-batch per GPU",
    ),
    (
        ["perf.max_tokens_per_gpu=64"],
        "--set perf.max_tokens_per_gpu=64: has no effect without use_dynamic_batch_size: true",
    ),
    (
        ["perf.sequence_parallel=true"],
        "--set perf.sequence_parallel=true: shards over tensor ranks: raise tensor_model_parallel_size(1)",
    ),
    (
        ["optimizer.optimizer_cpu_offload=true"],
        "--set optimizer.optimizer_cpu_offload=true: "
        "needs use_precision_aware_optimizer: true; without it the first step writes pre-load weights back",
    ),
    (
        ["optimizer.overlap_cpu_optimizer_d2h_h2d=true"],
        "--set optimizer.overlap_cpu_optimizer_d2h_h2d=true: only with optimizer_cpu_offload: true; leave it out",
    ),
    (["optimizer.min_lr=1e-3"], "--set optimizer.min_lr=1e-3: must be at most lr(1e-06)"),
    (
        ["sglang.rollout_num_gpus_per_engine=8", "sglang.dp_size=2"],
        "--set sglang.dp_size=2: above 1 needs enable_dp_attention: true",
    ),
    (["sglang.enable_dp_lm_head=true"], "--set sglang.enable_dp_lm_head=true: needs enable_dp_attention: true"),
    (
        ["sglang.rollout_num_gpus_per_engine=8", "sglang.ep_size=3"],
        "--set sglang.ep_size=3: must divide rollout_num_gpus_per_engine(8)",
    ),
    (
        ["sglang.rollout_num_gpus_per_engine=8", "sglang.ep_size=4", "sglang.moe_a2a_backend=deepep"],
        "--set sglang.ep_size=4: "
        "must be rollout_num_gpus_per_engine(8) with moe_a2a_backend: deepep, which spreads experts over all GPUs",
    ),
    (
        ["sglang.rollout_num_gpus_per_engine=8", "sglang.moe_dense_tp_size=2"],
        "--set sglang.moe_dense_tp_size=2: must be 1, rollout_num_gpus_per_engine(8) or null",
    ),
    (
        ["megatron.moe_token_dispatcher_type=flex"],
        "--set megatron.moe_token_dispatcher_type=flex: flex needs moe_flex_dispatcher_backend: deepep",
    ),
    (
        ["megatron.moe_token_dispatcher_type=allgather"],
        "--set megatron.moe_token_dispatcher_type=allgather: "
        "cannot carry packed sequences, whose lengths vary; write alltoall or flex",
    ),
    (
        ["megatron.moe_token_dispatcher_type=flex", "megatron.moe_flex_dispatcher_backend=hybridep"],
        "--set megatron.moe_flex_dispatcher_backend=hybridep: never ran with these layers; write deepep",
    ),
    (
        ["megatron.attention_dropout=0.1"],
        "--set megatron.attention_dropout=0.1: "
        "must be 0: a policy trained with dropout is another one than the engine samples from",
    ),
    (
        ["megatron.hidden_dropout=0.1"],
        "--set megatron.hidden_dropout=0.1: "
        "must be 0: a policy trained with dropout is another one than the engine samples from",
    ),
    (
        ["megatron.accumulate_allreduce_grads_in_fp32=false"],
        "--set megatron.accumulate_allreduce_grads_in_fp32=false: "
        "must be true: gradients are always summed over micro-batches and ranks in float32",
    ),
    (
        ["megatron.attention_softmax_in_fp32=false"],
        "--set megatron.attention_softmax_in_fp32=false: must be true: attention computes no other softmax",
    ),
    (
        ["megatron.moe_aux_loss_coeff=0.001"],
        "--set megatron.moe_aux_loss_coeff=0.001: must be 0: Megatron weighs this loss by tokens, while the divisor of "
        "a step counts samples or trained tokens; R1 balances its experts by a bias instead",
    ),
    (
        ["perf.expert_tensor_parallel_size=2"],
        "--set perf.expert_tensor_parallel_size=2: "
        "must be 1: an expert's matrices stay whole on their rank; raise expert_model_parallel_size instead",
    ),
    (
        ["perf.tensor_model_parallel_size=8"],
        "--set perf.tensor_model_parallel_size=8: must be true with tensor_model_parallel_size(8): "
        "Megatron's experts need it, and it is always done",
    ),
    (
        ["perf.recompute_granularity=selective"],
        "--set perf.recompute_granularity=selective: selective also needs megatron.recompute_modules: "
        "attention never keeps its scores, so there is no default",
    ),
    (
        ["megatron.recompute_modules=[moe]"],
        "--set megatron.recompute_modules=[moe]: only with perf.recompute_granularity: selective; leave it out",
    ),
    (
        ["megatron.moe_flex_dispatcher_backend=deepep"],
        "--set megatron.moe_flex_dispatcher_backend=deepep: only with moe_token_dispatcher_type: flex",
    ),
    (
        ["hosts.device=cpu", "sglang.moe_a2a_backend=deepep"],
        "--set sglang.moe_a2a_backend=deepep: DeepEP runs on GPUs only, and hosts.device is cpu; leave it out",
    ),
    (
        ["hosts.device=cpu", "sglang.rollout_num_gpus_per_engine=4", "sglang.ep_size=4"],
        "--set sglang.ep_size=4: must be 1 where hosts.device is cpu: SGLang spreads experts over GPUs only",
    ),
    (
        ["hosts.port_base=65000", "hosts.port_span=600"],
        "--set hosts.port_span=600: port_base(65000) + port_span(600) = 65600 is past the last port, 65535",
    ),
    (
        ["hosts.port_base=65400"],
        "config.yaml:4: hosts.port_span = 400: port_base(65400) + port_span(400) = 65800 is past the last port, 65535",
    ),
    (
        ["slurm.signal_lead_minutes=60", "slurm.time_limit=1:00:00"],
        "--set slurm.signal_lead_minutes=60: must be below time_limit(60 minutes)",
    ),
]

HOLDS = [
    ["rollout.num_steps_per_rollout=4", "rollout.global_batch_size=8"],
    ["rollout.rm_type=null", "rollout.custom_rm_path=my.reward"],
    ["rollout.n_samples_per_prompt=1", "grpo.disable_rewards_normalization=true"],
    ["eval.eval_interval=5", "eval.eval_prompt_data={aime: /d/aime.jsonl}"],
    ["grpo.ref_logprob_interval=2", "grpo.use_kl_loss=true"],
    ["ckpt.ref_load=null", "ckpt.load=/runs/old"],
    ["ckpt.load=/runs/x", "ckpt.save=/runs/x"],
    ["ckpt.save=/runs/small/checkpoints"],
    ["ckpt.save=/runs/sma"],
    ["hosts.port_base=65000", "hosts.port_span=536"],
    ["sglang.rollout_num_gpus_per_engine=8", "sglang.moe_dense_tp_size=8"],
    ["perf.recompute_granularity=selective", "megatron.recompute_modules=[layernorm, moe]"],
    ["perf.tensor_model_parallel_size=8", "perf.sequence_parallel=true"],
]


@pytest.mark.parametrize(("overrides", "problem"), BROKEN, ids=[" ".join(overrides) for overrides, _ in BROKEN])
def test_a_broken_rule_is_told_with_its_numbers(write_config: WriteConfig, overrides: list[str], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=overrides, environ={})
    assert caught.value.problems == [problem]


@pytest.mark.parametrize("overrides", HOLDS, ids=" ".join)
def test_what_keeps_the_rules_is_accepted(write_config: WriteConfig, overrides: list[str]) -> None:
    load_config(write_config(), overrides=overrides, environ={})
