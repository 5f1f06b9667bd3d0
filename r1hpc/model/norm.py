"""RMSNorm for activations that tensor ranks share along the sequence."""

from __future__ import annotations

import torch
from megatron.core.transformer import MLATransformerConfig
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 and rounded once (arXiv:1910.07467).

    Upstream's wrapper of torch's norm refuses sequence parallelism, which experts with tp > 1 require. The tag on the
    weight lets Megatron's finalize_model_grads sum the gradients that tensor ranks have of their shares.
    """

    def __init__(self, config: MLATransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(
            torch.empty(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device())
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)
