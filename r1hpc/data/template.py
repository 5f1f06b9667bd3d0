"""From a record to the tokens that the engine is given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy
from numpy.typing import NDArray

from r1hpc.data.errors import DataError
from r1hpc.data.record import Record
from r1hpc.data.rows import RowError


class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    bos_token: str | None
    bos_token_id: int | None
    chat_template: Any

    def __call__(self, texts: list[str], **options: Any) -> Mapping[str, list[list[int]]]: ...

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str: ...

    def decode(self, tokens: list[int], **options: Any) -> str: ...


def load_tokenizer(hf_checkpoint: Path | str) -> Tokenizer:
    """The tokenizer in `hf_checkpoint`; nothing is downloaded and no code of the directory runs. Raises DataError."""
    if not os.path.isdir(hf_checkpoint):
        raise DataError(f"ckpt.hf_checkpoint = {hf_checkpoint}: no such directory; the tokenizer is read from there")
    # Seconds of import (torch comes along): what only reads files does without.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(hf_checkpoint), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of whatever library the files make transformers call
        raise DataError(
            f"ckpt.hf_checkpoint = {hf_checkpoint}: no tokenizer can be loaded from it: {error}; it must hold "
            "tokenizer.json and tokenizer_config.json of the model"
        ) from error
    return cast("Tokenizer", loaded)


@dataclass(frozen=True)
class PromptEncoder:
    """Wraps prompts with the chat template, or takes them as they are, and tokenizes them."""

    tokenizer: Tokenizer
    apply_chat_template: bool

    def __post_init__(self) -> None:
        if self.apply_chat_template and not self.tokenizer.chat_template:
            raise DataError(
                "rollout.apply_chat_template: the tokenizer of ckpt.hf_checkpoint has no chat template; add "
                "chat_template to its tokenizer_config.json, or leave apply_chat_template out"
            )

    def text(self, record: Record) -> str:
        """What is tokenized: a text becomes the message of a user, and the template begins the answer.

        Raises RowError where the template refuses the conversation, or begins the sentence twice.
        """
        text = self._conversation(record) if self.apply_chat_template else record.prompt
        assert isinstance(text, str), "messages without a template are no record"
        if (bos := self.tokenizer.bos_token) and text.startswith(bos + bos):
            where = "the template writes it, and the prompt too" if self.apply_chat_template else "in the prompt"
            raise RowError("begins the sentence twice", f"{bos}{bos}: {where}")
        return text

    def encode(self, texts: Sequence[str]) -> list[NDArray[numpy.int32]]:
        """[P] tokens of each; special tokens are those of the text: the template has written them already.

        Raises DataError where the tokenizer adds a begin of sentence to one that the text has.
        """
        if not texts:
            return []  # transformers fails on an empty batch
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        rows = self.tokenizer(list(texts), **options)["input_ids"]
        bos = self.tokenizer.bos_token_id
        if bos is not None and any(row[:2] == [bos, bos] for row in rows):
            raise DataError(
                f"ckpt.hf_checkpoint: its tokenizer puts {self.tokenizer.bos_token} before a text that begins with it "
                "although it is asked for no special tokens: set add_bos_token to false in its tokenizer_config.json"
            )
        return [numpy.array(row, dtype=numpy.int32) for row in rows]

    def _conversation(self, record: Record) -> str:
        prompt = record.prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        options = {"tools": record.tools, "tokenize": False, "add_generation_prompt": True}
        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except Exception as error:  # whatever the template's own expressions raise
            raise RowError("the chat template refuses it", f"{type(error).__name__}: {error}") from error

    def show(self, tokens: NDArray[numpy.int32]) -> str:
        """The text that tokens stand for, special tokens visible."""
        return self.tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
