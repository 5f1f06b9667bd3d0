"""A linear whose whole weight is on every tensor-parallel rank."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer import MLATransformerConfig
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint
from torch import Tensor, nn


class ReplicatedLinear(nn.Module):
    """x @ weight^T; weight [outputs, inputs] on every tensor rank, activations that rank's share of the sequence.

    Transformer Engine's "duplicated" linear. Upstream's local spec splits the down projections of latent attention and
    gathers what they give; the backward of that gather drops the other ranks' heads from the rotary key's gradient.
    The tag on the weight lets Megatron's finalize_model_grads sum the gradients that tensor ranks have of their shares.
    """

    def __init__(self, inputs: int, outputs: int, config: MLATransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(outputs, inputs, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[..., inputs] -> [..., outputs], and no bias, as Megatron's linears answer."""
        return nn.functional.linear(x, self.weight), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The whole weight, of which one rank's copy is written."""
        groups = ensure_metadata_has_dp_cp_group(metadata)
        weights: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=groups["dp_cp_group"],
        )
        return weights
