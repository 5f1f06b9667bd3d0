"""Builds this rank's stage of the model.

The one file that names GPTModel, which megatron-core 0.19 marks deprecated in favor of HybridModel (it still gets
critical fixes). The move to whatever comes after it is a change of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from r1hpc.model import compat
from r1hpc.model.config import transformer_config
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.model.spec import portable_spec


def build_model(hf: Mapping[str, Any], layout: Layout, settings: TrainSettings) -> GPTModel:
    """This rank's pipeline stage, on the settings' device. Every weight is NaN until it is loaded.

    hf: the values of config.json. The layout's groups exist (`Layout.initialize`).
    Raises ModelConfigError before anything is allocated.
    """
    compat.prepare(settings.device)
    config = transformer_config(hf, layout, settings)
    # The device as context: upstream's router makes its weight wherever torch does by default.
    with torch.device(settings.device):
        model = GPTModel(
            config=config,
            transformer_layer_spec=portable_spec(config, _layers_here(layout, config.num_layers)),
            vocab_size=hf["vocab_size"],
            max_sequence_length=hf["max_position_embeddings"],
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
            parallel_output=True,
        )
    if settings.device != "meta":
        _forget(model)
    return model


def sharded_state(model: GPTModel) -> dict[str, Any]:
    """The model's sharded state dict in the form that checkpoints use: the experts of a layer as one tensor."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state: dict[str, Any] = model.sharded_state_dict(metadata={"dp_cp_group": group, "singleton_local_shards": False})
    return state


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What a checkpoint fills, by name: parameters, and the float32 biases of the routers, which are buffers."""
    persistent = set(model.state_dict())
    biases = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {**{name: parameter.detach() for name, parameter in model.named_parameters()}, **biases}


def unloaded(model: torch.nn.Module) -> list[str]:
    """Names of the weights that no checkpoint has filled, or filled with NaN."""
    return [name for name, weight in weights(model).items() if weight.isnan().any()]


def _forget(model: torch.nn.Module) -> None:
    for weight in weights(model).values():
        weight.fill_(float("nan"))


def _layers_here(layout: Layout, num_layers: int) -> range:
    counts = layout.layers_of_stages(num_layers)
    stage = parallel_state.get_pipeline_model_parallel_rank()
    first = sum(counts[:stage])
    return range(first, first + counts[stage])
