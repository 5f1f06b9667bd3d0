"""The random states of a rank: taken, put back, or drawn anew where the layout is another.

Megatron keeps one state for each tensor-parallel and pipeline rank and hands it to all others of the same place, which
gives every expert-parallel rank the state of the first. Here every rank has its own.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from megatron.core.tensor_parallel import random as megatron_random

RandomStates = dict[str, Any]
"""Of one rank; nothing but what torch.load reads with weights_only."""


def random_states() -> RandomStates:
    """Every random state of this process: python, numpy, torch, the GPU's, Megatron's by name."""
    drawn: dict[str, Any] = numpy.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(drawn["state"]["key"].astype(numpy.int64)),
            "position": int(drawn["state"]["pos"]),
            "gauss": (int(drawn["has_gauss"]), float(drawn["gauss"])),
        },
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state().cpu(),
        # Cloned: a tracker's tensor is not changed in place, but nothing says that it never will be.
        "megatron": {
            name: state.clone() for name, state in megatron_random.get_cuda_rng_tracker().get_states().items()
        },
    }


def random_states_problem(states: RandomStates) -> str | None:
    """Why these states cannot be put back here; null where they can."""
    mine, saved = megatron_random.get_cuda_rng_tracker().get_states(), states["megatron"]
    if saved.keys() == mine.keys():
        return None
    return (
        f"has Megatron's random states {sorted(saved)}, this process keeps {sorted(mine)}; they must be the same: it is"
        " of another version, or the process groups were made without seeding (Layout.initialize does both)"
    )


def restore_random_states(states: RandomStates) -> None:
    """Put back what `random_states` took."""
    random.setstate(states["python"])
    drawn = states["numpy"]
    keys = drawn["keys"].numpy().astype(numpy.uint32)
    numpy.random.set_state(("MT19937", keys, drawn["position"], *drawn["gauss"]))
    torch.set_rng_state(states["torch"])
    torch.cuda.set_rng_state(states["device"])
    megatron_random.get_cuda_rng_tracker().set_states(dict(states["megatron"]))


def seed_random_states(seed: int, iteration: int, pipeline_rank: int) -> None:
    """Draw every random state of this rank from the run's seed and the iteration that begins.

    The iteration is part of it, so that a run that resumes at another layout does not repeat the numbers it began with;
    stages differ, and Megatron makes tensor and expert ranks differ, as at the start of a run.
    """
    drawn = int(numpy.random.SeedSequence([seed, iteration, pipeline_rank]).generate_state(1)[0])
    random.seed(drawn)
    numpy.random.seed(drawn)
    torch.manual_seed(drawn)
    megatron_random.model_parallel_cuda_manual_seed(drawn)
