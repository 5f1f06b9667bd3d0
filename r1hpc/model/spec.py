"""Which modules the model's layers are made of. The one place that knows; another tier would be one more such file."""

from __future__ import annotations

from functools import partial

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import MLATransformerConfig
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.moe_layer import ExpertsBuilder, MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import MlpBuilder, TransformerLayer, TransformerLayerSubmodules

from r1hpc.model.attention import LatentAttention
from r1hpc.model.experts import GroupedExperts
from r1hpc.model.norm import RMSNorm


def portable_spec(
    config: MLATransformerConfig, layers: range, experts: ExpertsBuilder = GroupedExperts
) -> TransformerBlockSubmodules:
    """The modules of these layers of the model, numbered from 0: torch and megatron-core alone, on CPU and GPU.

    experts: what computes the routed experts of a layer.
    """
    dense, moe = _layer(_dense_mlp()), _layer(_experts_layer(experts))
    return TransformerBlockSubmodules(
        layer_specs=[moe if config.moe_layer_freq[layer] else dense for layer in layers],
        layer_norm=RMSNorm,
    )


def _layer(mlp: MlpBuilder) -> ModuleSpec:
    return ModuleSpec(
        module=TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=RMSNorm,
            self_attention=ModuleSpec(module=LatentAttention),
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=RMSNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _dense_mlp() -> MlpBuilder:
    return partial(MLP.as_mlp_submodule, submodules=_gated_linears())


def _experts_layer(experts: ExpertsBuilder) -> MlpBuilder:
    shared = partial(SharedExpertMLP, submodules=_gated_linears())
    return partial(MoELayer, submodules=MoESubmodules(experts=experts, shared_experts=shared))


def _gated_linears() -> MLPSubmodules:
    return MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
