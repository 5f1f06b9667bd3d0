"""What an optimizer steps on: a model's own weights, or float32 masters where it computes in bfloat16."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn


class MasterWeights:
    """The float32 weights of a model whose parameters may be their roundings to bfloat16."""

    def __init__(self, model: Any, precision: Literal["float32", "bfloat16"]) -> None:
        """model: a float32 one; with bfloat16 its parameters, not its buffers, are rounded here."""
        self._rounded: list[nn.Parameter] = []
        self.values: list[nn.Parameter] = list(model.parameters())
        if precision == "bfloat16":
            self._rounded = self.values
            self.values = [nn.Parameter(weight.detach()) for weight in self._rounded]
            for weight in self._rounded:
                weight.data = weight.detach().bfloat16()

    def take_gradients(self) -> None:
        """Give the masters what the last backward passes left with the model."""
        for master, weight in zip(self.values, self._rounded or self.values, strict=True):
            if self._rounded:
                master.grad = None if weight.grad is None else weight.grad.float()
                weight.grad = None

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the model's weights."""
        if self._rounded:
            torch._foreach_copy_([weight.data for weight in self._rounded], [master.data for master in self.values])
