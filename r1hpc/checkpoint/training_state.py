"""What a training run keeps in its checkpoints beside the weights."""

from __future__ import annotations

import re

_KEY = re.compile(r"(chained_\d+\.)?(optimizer\.|rng_state|rerun_state_machine_state)")
"""Megatron's ChainedOptimizer numbers its optimizers: one of the experts, one of everything else."""


def is_training_state(key: str) -> bool:
    """Whether a key is of an optimizer or of random states, not of a weight."""
    return _KEY.match(key) is not None
