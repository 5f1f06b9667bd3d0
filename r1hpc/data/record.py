"""One row as a prompt: what must be there, and of what type."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from r1hpc.data.rows import RowError, json_kind

METADATA_KEY = "metadata"
"""Key of an object that rewards get with the response."""
REWARD_KEY = "rm_type"
"""Key in the metadata that overrides the configured reward."""
TOOLS_KEY = "tools"
"""Key of a list of tools for the chat template."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """A row of the file, checked."""

    prompt: str | Sequence[Message]
    """A text, or the messages of a conversation."""
    label: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class RecordFormat:
    """Where in a row things are."""

    input_key: str
    label_key: str | None
    messages_allowed: bool
    """Whether a chat template turns messages into text."""
    rewards: tuple[str, ...] | None = None
    """What `rm_type` of the metadata may be; None where nothing reads it."""

    def read(self, row: Mapping[str, Any]) -> Record:
        """The row as a prompt. Raises RowError."""
        return Record(self._prompt(row), self._label(row), self._metadata(row), _tools(row))

    def _prompt(self, row: Mapping[str, Any]) -> str | Sequence[Message]:
        value = _value(row, self.input_key)
        if isinstance(value, str):
            if not value.strip():
                raise RowError(f"{self.input_key!r} is empty")
            return _checked_text(value, self.input_key)
        if not isinstance(value, list):
            raise RowError(f"{self.input_key!r} is {json_kind(value)}", "a prompt is text, or a list of messages")
        if not self.messages_allowed:
            raise RowError(
                f"{self.input_key!r} is a list of messages",
                "only a chat template makes text of it: apply_chat_template",
            )
        if not value:
            raise RowError(f"{self.input_key!r} is empty")
        for number, message in enumerate(value, 1):
            _check_message(message, f"message {number} of {self.input_key!r}")
        return value

    def _label(self, row: Mapping[str, Any]) -> str | None:
        if self.label_key is None:
            return None
        value = _value(row, self.label_key)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RowError(f"label {self.label_key!r} is {json_kind(value)}", "a label is text or a number")
        if isinstance(value, str) and not value.strip():
            # No answer equals it: all its samples would get 0, at the cost of a whole group.
            raise RowError(f"label {self.label_key!r} is empty")
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"label {self.label_key!r} is no finite number", str(value))
        return _checked_text(str(value), self.label_key)

    def _metadata(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        value = row.get(METADATA_KEY)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise RowError(f"{METADATA_KEY!r} is {json_kind(value)}", "it must be an object")
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:  # parquet has times and bytes
            raise RowError(f"{METADATA_KEY!r} cannot be written as JSON", str(error)) from error
        reward = value.get(REWARD_KEY)
        if self.rewards is not None and reward is not None and reward not in self.rewards:
            raise RowError(f"{REWARD_KEY!r} is no reward", f"{reward!r}; there are {', '.join(self.rewards)}")
        return value


def _value(row: Mapping[str, Any], key: str) -> Any:
    if key not in row:
        raise RowError(f"has no key {key!r}", f"its keys: {', '.join(map(repr, row)) or 'none'}")
    return row[key]


def _tools(row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]] | None:
    value = row.get(TOOLS_KEY)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError(f"{TOOLS_KEY!r} is no list of objects")
    return value


def _check_message(message: object, name: str) -> None:
    if not isinstance(message, dict):
        raise RowError("a message is no object", f"{name} is {json_kind(message)}")
    if not isinstance(message.get("role"), str):
        raise RowError("a message has no role", f"{name}: a message is {{'role': 'user', 'content': '...'}}")
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if not isinstance(content, str):
        raise RowError("content of a message is no text", f"{name}: it is {json_kind(content)}")
    _checked_text(content, name)


def _checked_text(text: str, name: str) -> str:
    """The text itself. JSON can hold half of a surrogate pair (\\ud800), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("is no Unicode text", f"{name}, character {error.start + 1}: half of a surrogate pair") from None
    return text
