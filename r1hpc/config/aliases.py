"""Older and other names of arguments: the one table, read by configuration files, --set and imported scripts alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from r1hpc.config.portable import SETTLED


@dataclass(frozen=True)
class SameAs:
    """A value that is another key's, known once all files are laid over each other."""

    key: str


WRITTEN: Final = object()
"""In `Alias.sets`: the value as it was written."""


@dataclass(frozen=True)
class Alias:
    """`old` is accepted; what it means now is `sets`, and nothing where that is empty."""

    old: str
    """Key in today's spelling: section.name, underscores."""
    sets: Mapping[str, object] = field(default_factory=dict)
    only: tuple[object, ...] = ()
    """The values that are accepted; empty for every value."""
    why: str = ""


def _renamed(old: str, new: str) -> Alias:
    return Alias(old, {new: WRITTEN})


def _switch(old: str, **sets: object) -> Alias:
    """A flag that is now written as values of other keys of its section; `false` means nothing."""
    section = old.partition(".")[0]
    return Alias(old, {f"{section}.{name}": value for name, value in sets.items()}, only=(True,))


def _no_effect(old: str, why: str, *only: object) -> Alias:
    return Alias(old, only=only, why=why)


ALIASES: Final[tuple[Alias, ...]] = (
    # SGLang: arguments that newer versions dropped.
    _switch("sglang.enable_ep_moe", ep_size=SameAs("sglang.rollout_num_gpus_per_engine")),
    _switch("sglang.enable_deepep_moe", moe_a2a_backend="deepep"),
    _switch("sglang.enable_flashinfer_cutlass_moe", moe_runner_backend="flashinfer_cutlass"),
    _switch("sglang.enable_flashinfer_trtllm_moe", moe_runner_backend="flashinfer_trtllm"),
    _switch("sglang.enable_triton_kernel_moe", moe_runner_backend="triton_kernel"),
    _renamed("sglang.ep", "sglang.ep_size"),
    _renamed("sglang.expert_parallel_size", "sglang.ep_size"),
    _renamed("sglang.dp", "sglang.dp_size"),
    _renamed("sglang.data_parallel_size", "sglang.dp_size"),
    # Megatron: arguments that newer versions dropped, and flags whose field has another name.
    _switch("megatron.moe_enable_deepep", moe_token_dispatcher_type="flex", moe_flex_dispatcher_backend="deepep"),
    _switch("megatron.bf16", params_dtype="bf16"),
    _switch("megatron.no_bias_dropout_fusion", bias_dropout_fusion=False),
    _switch("megatron.no_bias_swiglu_fusion", bias_activation_fusion=False),
    _renamed("megatron.moe_deepep_num_sms", "megatron.moe_flex_dispatcher_num_sms"),
    *(_no_effect(f"megatron.{name}", group.why, *group.only) for group in SETTLED for name in group.fields),
    _no_effect("perf.seq_length", "sequences are packed to max_tokens_per_gpu; Megatron's seq_length is a dummy"),
    _no_effect("perf.micro_batch_size", "micro-batches are packed to max_tokens_per_gpu"),
    _no_effect("optimizer.use_distributed_optimizer", "the optimizer is always distributed", True),
    # The rest of the launch script.
    _renamed("hosts.slot", "hosts.gpus_per_node"),
    _renamed("hosts.slots", "hosts.gpus_per_node"),
    _renamed("hosts.num_gpus_per_node", "hosts.gpus_per_node"),
    _renamed("hosts.actor_num_nodes", "hosts.num_nodes"),
    _renamed("hosts.actor_num_gpus_per_node", "hosts.gpus_per_node"),
    _no_effect("hosts.colocate", "training and rollout always share the GPUs", True),
    _switch("rollout.partial_rollout", recycle="tokens"),
    _no_effect("cast.mp_pp0_layers", "only Pai-Megatron-Patch's older converters read it, the cast never did"),
    _no_effect("convert.tensor_model_parallel_size", "the conversion slices by pipeline and expert", 1),
    _no_effect("convert.expert_tensor_parallel_size", "the conversion slices by pipeline and expert", 1),
)

VALUE_ALIASES: Final[Mapping[tuple[str, str], str]] = {
    (
        "rollout.dynamic_sampling_filter_path",
        "slime.rollout.filter_hub.dynamic_sampling_filters.check_reward_nonzero_std",
    ): "r1hpc.rollout.filters.check_reward_nonzero_std",
}
"""(key, value as written elsewhere) to the value here."""


def aliases_by_key() -> dict[str, Alias]:
    """Every alias under the key that it is written as."""
    return {alias.old: alias for alias in ALIASES}
