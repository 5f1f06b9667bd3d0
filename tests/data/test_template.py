"""From prompts to tokens, with the tokenizer of the tiny R1: a byte is the token byte + 3."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from r1hpc.data.errors import DataError
from r1hpc.data.record import Record
from r1hpc.data.rows import RowError
from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.rehearsal.tiny_tokenizer import BOS, CHAT_TEMPLATE, EOS

HOME = Path(__file__).resolve().parents[2]
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"  # noqa: RUF001 (the released spelling)
BOS_ID, THINK_ID, USER_ID, ASSISTANT_ID = 1, 259, 261, 262


def test_a_text_becomes_the_message_of_a_user_and_the_answer_is_begun(chat: PromptEncoder) -> None:
    text = chat.text(Record("1+1?"))
    assert text == f"{BOS}{USER}1+1?{ASSISTANT}<think>\n"
    (tokens,) = chat.encode([text])
    letters = [byte + 3 for byte in b"1+1?"]
    assert tokens.tolist() == [BOS_ID, USER_ID, *letters, ASSISTANT_ID, THINK_ID, ord("\n") + 3]
    assert tokens.dtype == "int32"
    assert chat.show(tokens) == text


def test_messages_are_taken_as_they_are(chat: PromptEncoder) -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>so</think>2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    expected = f"{BOS}Be short.{USER}1+1?{ASSISTANT}2{EOS}{USER}And 2+2?{ASSISTANT}<think>\n"
    assert chat.text(Record(messages)) == expected


def test_without_a_template_the_prompt_is_verbatim(raw: PromptEncoder) -> None:
    text = raw.text(Record(" 1+1?\n"))
    assert text == " 1+1?\n"
    assert raw.encode([text])[0].tolist() == [byte + 3 for byte in b" 1+1?\n"]


def test_special_tokens_in_the_text_are_their_one_token(raw: PromptEncoder) -> None:
    assert raw.encode([f"{BOS}{USER}a"])[0].tolist() == [BOS_ID, USER_ID, ord("a") + 3]


def test_tokens_do_not_depend_on_the_batch(chat: PromptEncoder) -> None:
    texts = [chat.text(Record("é" * length)) for length in (1, 50, 3)]
    together = chat.encode(texts)
    assert [tokens.tolist() for tokens in together] == [chat.encode([text])[0].tolist() for text in texts]
    assert [len(tokens) for tokens in together] == [5 + 2, 5 + 100, 5 + 6]  # é is two bytes


def test_tools_reach_the_template(tokenizer_directory: Path, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for tool in tools or [] %}{{ tool['name'] }};{% endfor %}" + CHAT_TEMPLATE.replace(
        "{{- bos_token + ns.system -}}", ""
    )
    encoder = _encoder(tokenizer_directory, tmp_path, chat_template=template)
    text = encoder.text(Record("1+1?", tools=[{"name": "sum"}, {"name": "sin"}]))
    assert text == f"{BOS}sum;sin;{USER}1+1?{ASSISTANT}<think>\n"
    assert encoder.text(Record("1+1?")) == f"{BOS}{USER}1+1?{ASSISTANT}<think>\n"


def test_a_sentence_that_begins_twice_is_a_bad_row(chat: PromptEncoder) -> None:
    with pytest.raises(RowError, match=r"begins the sentence twice: .*: the template writes it"):
        chat.text(Record([{"role": "system", "content": f"{BOS}Be short."}, {"role": "user", "content": "1+1?"}]))


def test_a_raw_prompt_that_begins_twice_is_a_bad_row_and_one_that_begins_is_none(raw: PromptEncoder) -> None:
    assert raw.text(Record(f"{BOS}1+1?")) == f"{BOS}1+1?"
    with pytest.raises(RowError, match=r"begins the sentence twice: .*: in the prompt"):
        raw.text(Record(f"{BOS}{BOS}1+1?"))


class AddsBeginAlways:
    """A tokenizer that begins every text, asked or not, as slow ones of older checkpoints do."""

    bos_token: str | None = "<s>"
    bos_token_id: int | None = 0
    chat_template: Any = None

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0, *([0] * text.startswith("<s>")), 5] for text in texts]}

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        raise NotImplementedError

    def decode(self, tokens: list[int], **options: Any) -> str:
        raise NotImplementedError


def test_a_tokenizer_that_adds_the_begin_again_is_refused() -> None:
    encoder = PromptEncoder(AddsBeginAlways(), apply_chat_template=False)
    assert encoder.encode(["1+1?"])[0].tolist() == [0, 5]
    with pytest.raises(DataError, match="set add_bos_token to false"):
        encoder.encode(["1+1?", "<s>1+1?"])


def test_a_conversation_that_the_template_refuses_is_a_bad_row(tokenizer_directory: Path, tmp_path: Path) -> None:
    template = "{{ raise_exception('roles must alternate') if messages|length > 1 else 'ok' }}"
    encoder = _encoder(tokenizer_directory, tmp_path, chat_template=template)
    message = {"role": "user", "content": "1+1?"}
    assert encoder.text(Record([message])) == "ok"
    with pytest.raises(RowError, match="the chat template refuses it: TemplateError: roles must alternate"):
        encoder.text(Record([message, message]))


def test_a_tokenizer_without_a_template_is_refused_only_where_it_is_needed(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no chat template"):
        _encoder(tokenizer_directory, tmp_path, chat_template=None)
    assert PromptEncoder(load_tokenizer(tmp_path), apply_chat_template=False).text(Record("1+1?")) == "1+1?"


def test_nothing_heavy_is_imported_before_a_tokenizer_is_loaded() -> None:
    code = "import sys, r1hpc.data.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(done.stdout.split())
    assert "r1hpc.data.prompts" in loaded
    assert {"torch", "transformers", "ray", "sglang", "pyarrow"} & loaded == set()


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ckpt\.hf_checkpoint = .*gone: no such directory"):
        load_tokenizer(tmp_path / "gone")
    with pytest.raises(DataError, match=r"(?s)no tokenizer can be loaded from it: .* it must hold tokenizer\.json"):
        load_tokenizer(tmp_path)


def _encoder(source: Path, directory: Path, **changes: object) -> PromptEncoder:
    """Of a copy of the tokenizer, with these values of tokenizer_config.json."""
    shutil.copytree(source, directory, dirs_exist_ok=True)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return PromptEncoder(load_tokenizer(directory), apply_chat_template=True)
