"""Token ids that the model has no embedding for: an engine on a GPU reads beyond its table, one on a CPU dies of it."""

from __future__ import annotations

import numpy

from r1hpc.rollout.group import SamplerError
from r1hpc.types import Prompt


def check_vocabulary(prompt: Prompt, vocab_size: int) -> None:
    """Raise SamplerError where a token of `prompt` is not in [0, vocab_size), before any engine gets it."""
    (places,) = numpy.nonzero((prompt.tokens < 0) | (prompt.tokens >= vocab_size))
    if len(places):
        raise SamplerError(
            f"prompt {prompt.index} (epoch {prompt.epoch}): token {places[0]} of {len(prompt.tokens)} has the id"
            f" {prompt.tokens[places[0]]}, but the model's vocabulary is 0 to {vocab_size - 1} (vocab_size of its"
            " config.json): the tokenizer of ckpt.hf_checkpoint does not belong to this model"
        )
