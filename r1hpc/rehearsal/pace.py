"""How a model of some width is taught: how many steps, how large each may be, where its weights begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TINY_WIDTH = 128
"""Hidden size of the tiny R1, whose numbers were found by trying; those of wider models follow from them."""
TINY_RATE = 3e-3
TINY_DEVIATION = 0.06
"""Of the weights, larger than the config's 0.02, which is for a wider model."""
LARGE_WIDTH = 256
"""From here on a model is taught as one that has a GPU."""


@dataclass(frozen=True)
class Pace:
    """What of teaching depends on the model's size."""

    steps: int
    batch: int
    """Rows of a step: prompt and response, some 30 tokens."""
    peak_learning_rate: float
    initial_deviation: float
    residual_deviation: float
    """Of the matrices that add to the residual stream: GPT-2 has them smaller, the more layers add."""
    precision: Literal["float32", "bfloat16"]
    """bfloat16: that of weights and activations; the optimizer steps on float32 masters."""
    experts: Literal["eager", "grouped_mm"]
    """How transformers computes them. eager: one after another, as fast as any other way on a CPU; grouped_mm: all in
    one product, which on a GPU takes bfloat16."""

    @property
    def tokens(self) -> int:
        """That the gradient is divided by: about those of the responses of a batch."""
        return self.batch * 16

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Pace:
        """Of a model by its config.json.

        Deviations go with the root of the width, so that activations are as large as the tiny model's. Learning rates
        go with its power of 3/4: weights become smaller by the root, and of a sum over more of them each must change
        less (arXiv:2203.03466 takes the power of 1 for inner matrices and 0 for the embedding).
        """
        width = config["hidden_size"]
        if width < LARGE_WIDTH:
            return cls(400, 64, TINY_RATE, TINY_DEVIATION, TINY_DEVIATION, "float32", "eager")
        relative = width / TINY_WIDTH
        deviation = TINY_DEVIATION / relative**0.5
        residual = deviation / (2 * config["num_hidden_layers"]) ** 0.5
        return cls(300, 128, TINY_RATE / relative**0.75, deviation, residual, "bfloat16", "grouped_mm")
