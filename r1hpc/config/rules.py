"""Rules between keys that need neither the model nor the topology; those that do are the planner's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from r1hpc.config.rule import Broken, Rule
from r1hpc.config.schema import Config
from r1hpc.config.trainer_rules import TRAINER_RULES


def _batch(config: Config) -> Iterator[Broken]:
    rollout = config.rollout
    prompts, samples = rollout.rollout_batch_size, rollout.samples_per_rollout
    product = f"rollout_batch_size({prompts}) * n_samples_per_prompt({rollout.n_samples_per_prompt}) = {samples}"
    steps, batch = rollout.num_steps_per_rollout, rollout.global_batch_size
    if steps is not None and samples % steps:
        yield Broken("rollout.num_steps_per_rollout", f"{product} samples do not divide into {steps} steps")
    elif steps is not None and batch is not None and batch * steps != samples:
        rule = f"{product}, over {steps} steps that is {samples // steps} samples a step; leave one of the two out"
        yield Broken("rollout.global_batch_size", rule)
    if steps is None and batch is not None and samples % batch:
        yield Broken("rollout.global_batch_size", f"{product} samples do not divide into steps of {batch}")
    if rollout.wave_prompts < prompts:
        rule = f"must be at least rollout_batch_size({prompts}): one wave submits all the prompts that are kept"
        yield Broken("rollout.over_sampling_batch_size", rule)


def _rewards(config: Config) -> Iterator[Broken]:
    rollout = config.rollout
    if rollout.rm_type is None and rollout.custom_rm_path is None:
        yield Broken("rollout.rm_type", "no reward: set rm_type (deepscaler, math_verify, exact) or custom_rm_path")
    if rollout.rm_type is not None and rollout.custom_rm_path is not None:
        yield Broken("rollout.custom_rm_path", f"rm_type is {rollout.rm_type}: one reward only, leave one of them out")
    if rollout.rm_type is not None and rollout.label_key is None:
        yield Broken("rollout.rm_type", "compares with a label: set label_key to its key in prompt_data")
    if rollout.rollout_top_k == 0 or rollout.rollout_top_k < -1:
        yield Broken("rollout.rollout_top_k", "must be -1 (off) or at least 1")


def _groups(config: Config) -> Iterator[Broken]:
    if config.rollout.n_samples_per_prompt == 1 and not config.grpo.disable_rewards_normalization:
        rule = "grpo subtracts the mean of the group: with 1 sample every advantage is 0; take 2 or more"
        yield Broken("rollout.n_samples_per_prompt", rule)


def _evaluation(config: Config) -> Iterator[Broken]:
    if config.eval.eval_interval is not None and not config.eval.eval_prompt_data:
        yield Broken("eval.eval_interval", "nothing to evaluate: set eval_prompt_data (name: path) as well")


def _kl(config: Config) -> Iterator[Broken]:
    grpo = config.grpo
    if grpo.kl_coef > 0 and grpo.kl_loss_coef > 0:
        rule = f"kl_loss_coef({grpo.kl_loss_coef}) is above 0 too, and KL would count twice; set one of them to 0"
        yield Broken("grpo.kl_coef", rule)
    if grpo.kl_loss_coef > 0 and not grpo.use_kl_loss:
        yield Broken("grpo.kl_loss_coef", "has no effect without use_kl_loss: true")
    if grpo.ref_logprob_interval > 1 and max(grpo.kl_coef, grpo.kl_loss_coef) > 0:
        coefficients = f"kl_loss_coef({grpo.kl_loss_coef}) and kl_coef({grpo.kl_coef})"
        yield Broken("grpo.ref_logprob_interval", f"above 1 only where {coefficients} are both 0: KL is trained on")
    if grpo.use_tis and grpo.use_rollout_logprobs:
        rule = "use_rollout_logprobs makes the rollout's log-probs the old ones: the ratio of use_tis is always 1"
        yield Broken("grpo.use_tis", f"{rule}; leave one of them out")


def _reference(config: Config) -> Iterator[Broken]:
    if config.ckpt.ref_load is not None:
        return
    if config.grpo.use_kl_loss or config.grpo.kl_coef > 0:
        yield Broken("ckpt.ref_load", "the reference is needed: use_kl_loss or kl_coef > 0 is set; give its directory")
    elif config.ckpt.load is None:
        yield Broken("ckpt.ref_load", "nothing to start from: set ref_load, or load to a directory with commits")


def _directories(config: Config) -> Iterator[Broken]:
    ckpt = config.ckpt
    seen = {ckpt.hf_checkpoint: "hf_checkpoint"}
    for name in ("bf16_checkpoint", "ref_load", "save"):
        path = getattr(ckpt, name)
        if path in seen:
            yield Broken(
                f"ckpt.{name}", f"is also {seen[path]}: one would overwrite the other; give it its own directory"
            )
        elif path is not None:
            seen[path] = name


def _commits(config: Config) -> Iterator[Broken]:
    save, run = config.ckpt.save, Path(config.run.root) / config.run.name
    if save is not None and run.is_relative_to(save):
        which = "the run directory itself" if Path(save) == run else f"above the run directory {run}"
        rule = f"is {which}, and commits need a directory of their own; leave save out: they go to {run}/checkpoints"
        yield Broken("ckpt.save", rule)


def _packing(config: Config) -> Iterator[Broken]:
    perf = config.perf
    if perf.use_dynamic_batch_size and perf.max_tokens_per_gpu is None:
        yield Broken("perf.use_dynamic_batch_size", "needs max_tokens_per_gpu, the tokens of a micro-batch per GPU")
    if perf.max_tokens_per_gpu is not None and not perf.use_dynamic_batch_size:
        yield Broken("perf.max_tokens_per_gpu", "has no effect without use_dynamic_batch_size: true")
    if perf.sequence_parallel and perf.tensor_model_parallel_size == 1:
        yield Broken("perf.sequence_parallel", "shards over tensor ranks: raise tensor_model_parallel_size(1)")


def _engine(config: Config) -> Iterator[Broken]:
    sglang = config.sglang
    gpus = sglang.rollout_num_gpus_per_engine
    size = f"rollout_num_gpus_per_engine({gpus})"
    if sglang.dp_size > 1 and not sglang.enable_dp_attention:
        yield Broken("sglang.dp_size", "above 1 needs enable_dp_attention: true")
    if sglang.enable_dp_lm_head and not sglang.enable_dp_attention:
        yield Broken("sglang.enable_dp_lm_head", "needs enable_dp_attention: true")
    for name in ("dp_size", "ep_size"):
        if gpus % getattr(sglang, name):
            yield Broken(f"sglang.{name}", f"must divide {size}")
    if sglang.moe_a2a_backend == "deepep" and sglang.ep_size != gpus:
        yield Broken(
            "sglang.ep_size", f"must be {size} with moe_a2a_backend: deepep, which spreads experts over all GPUs"
        )
    if sglang.moe_dense_tp_size not in (None, 1, gpus):
        yield Broken("sglang.moe_dense_tp_size", f"must be 1, {size} or null")


def _device(config: Config) -> Iterator[Broken]:
    if config.hosts.device != "cpu":
        return
    if config.sglang.moe_a2a_backend == "deepep":
        yield Broken("sglang.moe_a2a_backend", "DeepEP runs on GPUs only, and hosts.device is cpu; leave it out")
    if config.sglang.ep_size > 1:
        # Measured with 0.5.21: it starts, and its first token ends the scheduler.
        yield Broken("sglang.ep_size", "must be 1 where hosts.device is cpu: SGLang spreads experts over GPUs only")
    if config.megatron.moe_flex_dispatcher_backend is not None:
        rule = "runs on GPUs only, and hosts.device is cpu; take moe_token_dispatcher_type: alltoall"
        yield Broken("megatron.moe_flex_dispatcher_backend", rule)


def _ports(config: Config) -> Iterator[Broken]:
    hosts = config.hosts
    end = hosts.port_base + hosts.port_span
    if end > 65536:
        rule = f"port_base({hosts.port_base}) + port_span({hosts.port_span}) = {end} is past the last port, 65535"
        yield Broken("hosts.port_span", rule)


def _signal_lead(config: Config) -> Iterator[Broken]:
    lead, limit = config.slurm.signal_lead_minutes, config.slurm.time_limit
    if lead is not None and lead >= limit:
        yield Broken("slurm.signal_lead_minutes", f"must be below time_limit({limit} minutes)")


RULES: Final = (
    Rule(("rollout",), _batch),
    Rule(("rollout",), _rewards),
    Rule(("rollout", "grpo"), _groups),
    Rule(("eval",), _evaluation),
    Rule(("grpo",), _kl),
    Rule(("ckpt", "grpo"), _reference),
    Rule(("ckpt",), _directories),
    Rule(("ckpt", "run"), _commits),
    Rule(("perf",), _packing),
    Rule(("sglang",), _engine),
    Rule(("hosts", "sglang", "megatron"), _device),
    Rule(("hosts",), _ports),
    Rule(("slurm",), _signal_lead),
    *TRAINER_RULES,
)
