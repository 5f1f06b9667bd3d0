"""The model of r1hpc.model, and a variant that training never builds: with its multi-token-prediction layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import ExpertsBuilder

from r1hpc.model.build import build_model
from r1hpc.model.config import transformer_config
from r1hpc.model.experts import GroupedExperts
from r1hpc.model.norm import RMSNorm
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.model.spec import portable_spec

UPSTREAM_EXPERTS: ExpertsBuilder = partial(
    SequentialMLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear)
)
"""megatron-core's own: one expert after another."""


def build(config: Mapping[str, Any], layout: Layout, settings: TrainSettings, mtp: bool = False) -> GPTModel:
    """This rank's part of the model; with its multi-token-prediction layer where asked."""
    return build_with_mtp(config, layout, settings) if mtp else build_model(config, layout, settings)


def build_with_mtp(
    hf: Mapping[str, Any], layout: Layout, settings: TrainSettings, experts: ExpertsBuilder = GroupedExperts
) -> GPTModel:
    """As `build_model` builds it, and a multi-token-prediction layer at the end, to be saved and loaded."""
    config = transformer_config(hf, layout, settings)
    config.mtp_num_layers = hf["num_nextn_predict_layers"]
    counts = layout.layers_of_stages(config.num_layers)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    block = portable_spec(config, range(sum(counts[:stage]), sum(counts[: stage + 1])), experts)
    # The prediction layer asks this of the attention that it is built around.
    block.layer_specs[-1].submodules.self_attention.params["attn_mask_type"] = AttnMaskType.causal
    mtp = get_gpt_mtp_block_spec(config, block, use_transformer_engine=False)
    for layer in mtp.layer_specs if mtp else ():
        layer.submodules.enorm = layer.submodules.hnorm = layer.submodules.layer_norm = RMSNorm
    with torch.device(settings.device):
        return GPTModel(
            config=config,
            transformer_layer_spec=block,
            mtp_block_spec=mtp,
            vocab_size=hf["vocab_size"],
            max_sequence_length=hf["max_position_embeddings"],
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
        )
