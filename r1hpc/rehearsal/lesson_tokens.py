"""Problems and their answers as the tokens that the model sees: prompts by the chat template, answers to their end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from r1hpc.rehearsal.arithmetic import WORDS, Problem
from r1hpc.rehearsal.tiny_tokenizer import BOS, CHAT_TEMPLATE, EOS, tokenizer_json

UNTRAINED = -100
"""Target of a token that is not learned: the value that torch's cross entropy ignores."""


class LessonTokens:
    """Tokens of the prompts, made once, and of the responses."""

    def __init__(self, config: Mapping[str, Any], asked: Sequence[Problem]) -> None:
        """config: values of config.json. asked: the problems that `batch` may be given."""
        load: Any = PreTrainedTokenizerFast
        self._tokenizer: Any = load(
            tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer_json(config, WORDS))),
            chat_template=CHAT_TEMPLATE,
            bos_token=BOS,
            eos_token=EOS,
        )
        self._eos: int = config["eos_token_id"]
        conversations = [[{"role": "user", "content": problem.prompt}] for problem in asked]
        texts = self._tokenizer.apply_chat_template(conversations, tokenize=False, add_generation_prompt=True)
        self._prompts = dict(zip(asked, self._encode(texts), strict=True))

    def prompts(self, asked: Sequence[Problem]) -> Tensor:
        """[B, L] tokens of the prompts, all of one length: numbers of two digits each."""
        return torch.tensor([self._prompts[problem] for problem in asked])

    def text(self, tokens: Sequence[int]) -> str:
        """Of a response, up to its end."""
        ended = tokens.index(self._eos) if self._eos in tokens else len(tokens)
        shown: str = self._tokenizer.decode(tokens[:ended])
        return shown

    def batch(self, lesson: Sequence[tuple[Problem, str]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """[B, L] tokens and [B, L] targets: the response and its end; all else, padding too, is UNTRAINED."""
        responses = self._encode([response for _, response in lesson])
        rows = [
            (self._prompts[problem], [*tokens, self._eos])
            for (problem, _), tokens in zip(lesson, responses, strict=True)
        ]
        longest = max(len(prompt) + len(tokens) for prompt, tokens in rows)
        inputs = torch.full((len(rows), longest), self._eos)
        targets = torch.full((len(rows), longest), UNTRAINED)
        for row, (prompt, tokens) in enumerate(rows):
            end = len(prompt) + len(tokens)
            inputs[row, :end] = torch.tensor([*prompt, *tokens])
            targets[row, len(prompt) : end] = torch.tensor(tokens)
        return inputs.to(device), targets.to(device)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return rows
