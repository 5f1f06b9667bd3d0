"""Keeps the experts of a layer about equally busy by their correction biases, as DeepSeek-V3 was trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SPEED = 0.001
"""By how much a bias moves a step: arXiv:2412.19437 section 4.2."""


class ExpertBalance:
    """Counts which experts are chosen, and after each step makes those chosen too often a little less attractive."""

    def __init__(self, model: Any) -> None:
        """model: a DeepseekV3ForCausalLM."""
        self._layers: list[tuple[Tensor, Tensor]] = []
        """[experts] twice: biases, and how many tokens chose each expert since the last step."""
        for layer in model.model.layers[model.config.first_k_dense_replace :]:
            self._watch(layer.mlp.experts, layer.mlp.gate.e_score_correction_bias)

    @torch.no_grad()
    def step(self) -> None:
        """Move every bias, without a gradient: section 2.1.2 of the paper."""
        for bias, load in self._layers:
            bias += SPEED * (load.mean() - load).sign()
            load.zero_()

    def _watch(self, experts: nn.Module, bias: Tensor) -> None:
        load = torch.zeros_like(bias)
        self._layers.append((bias, load))

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            chosen = inputs[1].flatten()
            # Not bincount: it would wait for a GPU.
            load.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=load.dtype))

        experts.register_forward_pre_hook(count)
