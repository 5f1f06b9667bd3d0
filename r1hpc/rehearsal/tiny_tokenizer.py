"""A byte-level tokenizer that takes any text, with the special tokens and the chat template of DeepSeek-R1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1hpc.errors import ConfigError

BOS = "<｜begin▁of▁sentence｜>"  # noqa: RUF001 (the released spelling)
EOS = "<｜end▁of▁sentence｜>"  # noqa: RUF001
PAD = "<｜▁pad▁｜>"  # noqa: RUF001
MARKS = ("<think>", "</think>", "<｜User｜>", "<｜Assistant｜>")  # noqa: RUF001
"""Tokens of their own that decoding keeps: to the released tokenizer they are not "special"."""

CHAT_TEMPLATE = r"""
{%- set ns = namespace(system='') -%}
{%- for message in messages if message['role'] == 'system' -%}
    {%- set ns.system = message['content'] -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '<｜User｜>' + message['content'] -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<｜Assistant｜><think>\n' -}}
{%- endif -%}
""".strip()  # noqa: RUF001
"""What the released template makes of a conversation without tools: past reasoning is dropped, new one begun."""


def tokenizer_json(config: Mapping[str, Any], words: Sequence[str] = ()) -> dict[str, Any]:
    """tokenizer.json: one token a byte, in the order of the bytes, between the special tokens.

    Begin and end of sentence have the ids that config.json gives them; the padding takes the lowest id left. words:
    further texts that are one token each, wherever they stand.
    Raises ConfigError where an id or vocab_size of config.json does not admit that.
    """
    texts = (*MARKS, *words)
    bos, eos = _checked_ids(config, len(texts))
    free = (number for number in range(config["vocab_size"]) if number not in (bos, eos))
    special = {BOS: bos, EOS: eos, PAD: next(free)}
    letters = {letter: next(free) for letter in byte_letters()}
    marks = {text: next(free) for text in texts}
    added = [_added_token(text, number, special=True) for text, number in special.items()]
    added += [_added_token(text, number, special=False) for text, number in marks.items()]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": dict(sorted((special | letters | marks).items(), key=lambda item: item[1])),
            "merges": [],
        },
    }


def tokenizer_config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json in the released form: the template writes the begin of sentence, so encoding does not."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "bos_token": _token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": _token(EOS),
        "legacy": True,
        "model_max_length": config["max_position_embeddings"],
        # The released file pads with the end of sentence, although the vocabulary has a token for padding.
        "pad_token": _token(EOS),
        "sp_model_kwargs": {},
        "unk_token": None,
        # Wrong for a byte-level vocabulary, and released so: transformers knows, and reads tokenizer.json as it is.
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json as released, with the ids of this model."""
    return {
        "_from_model_config": True,
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
    }


def byte_letters() -> Iterator[str]:
    """The letter that stands for each byte 0..255 in a byte-level vocabulary: itself where it can be seen.

    GPT-2's map (github.com/openai/gpt-2, encoder.py): the 68 others take the letters from U+0100 on, in order.
    """
    unseen = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or byte >= 0xAE:
            yield chr(byte)
        else:
            yield chr(unseen)
            unseen += 1


def _checked_ids(config: Mapping[str, Any], marks: int) -> tuple[int, int]:
    size, bos, eos = config["vocab_size"], config.get("bos_token_id"), config.get("eos_token_id")
    least = 256 + 3 + marks
    problems = []
    if size < least:
        problems.append(
            f"vocab_size is {size}; the tokenizer needs 256 bytes + 3 special tokens + {marks} marks = {least}:"
            f" set vocab_size={least} or more"
        )
    for key, number in (("bos_token_id", bos), ("eos_token_id", eos)):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < max(size, least):
            problems.append(f"{key} is {number!r}; it must be a whole number from 0 to vocab_size - 1 = {size - 1}")
    if bos == eos:
        problems.append(f"bos_token_id and eos_token_id are both {bos!r}; give each its own")
    if problems:
        raise ConfigError(problems)
    assert isinstance(bos, int) and isinstance(eos, int)
    return bos, eos


def _token(content: str) -> dict[str, Any]:
    return {
        "__type": "AddedToken",
        "content": content,
        "lstrip": False,
        "normalized": True,
        "rstrip": False,
        "single_word": False,
    }


def _added_token(content: str, number: int, *, special: bool) -> dict[str, Any]:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }
