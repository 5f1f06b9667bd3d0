"""Checks the arguments that pass through `sglang:` and `megatron:` to the libraries, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from r1hpc.config.libraries import megatron_fields, sglang_arguments
from r1hpc.config.nearest import nearest
from r1hpc.config.source import Layer, Problem
from r1hpc.config.structure import owners, section_fields
from r1hpc.config.validate import about

_FROM_HF_CHECKPOINT = "ckpt.hf_checkpoint decides it"
_FROM_ENGINE_SIZE = "rollout_num_gpus_per_engine decides it"
_FROM_PLACEMENT = "the placement on the nodes decides it"
_FROM_PORT_BAND = "hosts.port_base and hosts.port_span decide it"
_FROM_CONFIG_JSON = "the model's config.json decides it (ckpt.hf_checkpoint)"

_SGLANG_OWNED: Final = {
    "model_path": _FROM_HF_CHECKPOINT,
    "model": _FROM_HF_CHECKPOINT,
    "tp_size": _FROM_ENGINE_SIZE,
    "tp": _FROM_ENGINE_SIZE,
    "tensor_parallel_size": _FROM_ENGINE_SIZE,
    "port": _FROM_PORT_BAND,
    "nccl_port": _FROM_PORT_BAND,
    "nnodes": _FROM_PLACEMENT,
    "node_rank": _FROM_PLACEMENT,
    "dist_init_addr": _FROM_PLACEMENT,
    "nccl_init_addr": _FROM_PLACEMENT,
    "base_gpu_id": _FROM_PLACEMENT,
    "enable_memory_saver": "it is on wherever training and rollout share a GPU",
    "random_seed": "run.seed decides it, with another seed for each engine",
}
"""Server argument that r1hpc sets itself, and from what."""

_MODEL_ARGUMENTS = """
num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups group_query_attention kv_channels
max_position_embeddings original_max_position_embeddings vocab_size padded_vocab_size make_vocab_size_divisible_by
normalization norm_epsilon layernorm_epsilon layernorm_zero_centered_gamma position_embedding_type rotary_base
rotary_percent rotary_scaling_factor rope_type mscale mscale_all_dim beta_fast beta_slow swiglu gated_linear_unit
activation_func add_bias_linear disable_bias_linear add_qkv_bias untie_embeddings_and_output_weights
multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim qk_layernorm
num_experts num_moe_experts moe_layer_freq moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_router_topk
moe_router_num_groups moe_router_group_topk moe_router_score_function moe_router_pre_softmax
moe_router_topk_scaling_factor moe_router_enable_expert_bias mtp_num_layers
"""
MODEL_ARGUMENTS: Final = frozenset(_MODEL_ARGUMENTS.split())
"""Megatron's arguments and fields that describe the model: all of them are derived from config.json."""

_MEGATRON_OWNED: Final = dict.fromkeys(MODEL_ARGUMENTS, _FROM_CONFIG_JSON) | {
    "fp16": "params_dtype decides it, bf16 or fp32",
    "pipeline_dtype": "params_dtype decides it",
    "autocast_dtype": "params_dtype decides it",
}
"""Megatron field that r1hpc sets itself, and from what."""


@dataclass(frozen=True)
class _Library:
    section: str
    name: str
    owned: dict[str, str]
    installed_names: Callable[[], Collection[str] | None]


_LIBRARIES: Final = (
    _Library("sglang", "SGLang", _SGLANG_OWNED, sglang_arguments),
    _Library("megatron", "Megatron", _MEGATRON_OWNED, megatron_fields),
)


def check_passed_through(layer: Layer) -> tuple[list[str], list[Problem]]:
    """Notices and problems of every argument that the schema itself does not know."""
    notices: list[str] = []
    problems: list[Problem] = []
    for library in _LIBRARIES:
        values = layer.values.get(library.section)
        names = values if isinstance(values, dict) else {}
        unknown = [name for name in names if name not in section_fields(library.section)]
        if not unknown:
            continue
        # Reading the library's source costs 15 ms, so it happens only where there is a name to look for.
        installed = library.installed_names()
        if installed is None:
            notices.append(f"{library.section}: {library.name} is not installed, so unchecked: {', '.join(unknown)}")
        for name in unknown:
            rule = next(_rules(library, name, installed), None)
            if rule is not None:
                path = (library.section, name)
                problems.append(Problem(layer.where(path), rule, about(layer, path)))
    return notices, problems


def _rules(library: _Library, name: str, installed: Collection[str] | None) -> Iterator[str]:
    """What speaks against passing `name` on."""
    homes = [home for home in owners(name) if home != library.section]
    if name in library.owned:
        yield f"cannot be set here: {library.owned[name]}"
    if homes:
        yield f"belongs to {' or '.join(homes)}: write it there"
    if installed is not None and name not in installed:
        close = nearest(name, [*section_fields(library.section), *installed])
        yield f"the installed {library.name} has no such argument" + (f"; did you mean {close}?" if close else "")
