"""Estimated floating-point operations of a sequence: what packing balances."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.plan.iteration import active_parameters
from r1hpc.plan.model_shape import ModelShape


@dataclass(frozen=True)
class SequenceCost:
    """Operations of one forward pass over a sequence, by its length. Whole numbers: sums do not depend on the order."""

    per_token: int
    """Of every matrix that a token is multiplied with: two for each active parameter."""
    per_pair: int
    """Of causal attention for each token squared: scores and weighted values, two operations, half of the square."""

    def __call__(self, length: int) -> int:
        """Operations for `length` tokens."""
        return self.per_token * length + self.per_pair * length * length


def sequence_cost(shape: ModelShape) -> SequenceCost:
    """The cost of a sequence for a model of this shape; that of R1 doubles at 30k tokens a sequence."""
    return SequenceCost(
        per_token=2 * active_parameters(shape),
        per_pair=shape.num_layers * shape.num_heads * (shape.qk_head_dim + shape.v_head_dim),
    )
