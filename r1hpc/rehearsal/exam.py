"""What a model that was just taught can do, before it is written: held-out problems, as a rollout samples them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from r1hpc.rehearsal.arithmetic import LARGEST_RESPONSE, Problem
from r1hpc.rehearsal.lesson_tokens import LessonTokens

TEMPERATURE = 0.8
SAMPLES = 4
"""Of each problem."""


def share_right(model: Any, tokens: LessonTokens, asked: Sequence[Problem]) -> float:
    """Share of right answers among `SAMPLES` to each problem. model: a DeepseekV3ForCausalLM, on any device."""
    repeated = [problem for problem in asked for _ in range(SAMPLES)]
    responses = _sampled(model, tokens.prompts(repeated).to(model.device))
    pairs = zip(repeated, responses.tolist(), strict=True)
    right = sum(answer_of(tokens.text(response)) == problem.label for problem, response in pairs)
    return right / len(repeated)


def answer_of(text: str) -> str | None:
    r"""What stands in \boxed{} behind the thinking; None where nothing does."""
    _, thought, rest = text.partition("</think>")
    _, boxed, rest = rest.partition("\\boxed{")
    answer, closed, _ = rest.partition("}")
    return answer if thought and boxed and closed else None


@torch.no_grad()
def _sampled(model: Any, prompts: Tensor) -> Tensor:
    """[N, R] responses; what follows an end of sentence means nothing."""
    tokens, cache = prompts, None
    drawn = []
    for _ in range(LARGEST_RESPONSE):
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens = (out.logits[:, -1].float() / TEMPERATURE).softmax(-1).multinomial(1)
        drawn.append(tokens)
    return torch.cat(drawn, 1)
