"""The tokenizer of the tiny R1, and prompt files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.rehearsal.tiny_tokenizer import tokenizer_config_json, tokenizer_json

WriteLines = Callable[..., Path]
"""Writes a jsonl file: objects are dumped, texts and bytes are lines as they are."""


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of a checkpoint the tokenizer is loaded from. A byte is the token byte + 3; User is 261, Assistant 262."""
    directory = tmp_path_factory.mktemp("tiny-r1")
    config = tiny_config(TINY_R1, {}, mtp=True, fp8=False)
    files = {"config": config, "tokenizer": tokenizer_json(config), "tokenizer_config": tokenizer_config_json(config)}
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values), encoding="utf-8")
    return directory


@pytest.fixture(scope="session")
def chat(tokenizer_directory: Path) -> PromptEncoder:
    """With the chat template."""
    return PromptEncoder(load_tokenizer(tokenizer_directory), apply_chat_template=True)


@pytest.fixture(scope="session")
def raw(chat: PromptEncoder) -> PromptEncoder:
    """Without."""
    return PromptEncoder(chat.tokenizer, apply_chat_template=False)


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """A jsonl file of these lines, each ended with a newline."""

    def write(*lines: Any, name: str = "prompts.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(_line(line) + b"\n" for line in lines))
        return path

    return write


def _line(line: Any) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()
