"""Which rows are prompts."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from r1hpc.data.record import Record, RecordFormat
from r1hpc.data.rows import RowError

FORMAT = RecordFormat("prompt", "label", messages_allowed=True, rewards=("deepscaler", "exact"))
USER = {"role": "user", "content": "1+1?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "1+1?", "label": "2", "source": "x"}, Record("1+1?", "2")),
        ({"prompt": " 1+1?\n", "label": 2}, Record(" 1+1?\n", "2")),
        ({"prompt": "half", "label": 0.5}, Record("half", "0.5")),
        ({"prompt": [USER], "label": "2"}, Record([USER], "2")),
        ({"prompt": "p", "label": "2", "metadata": None}, Record("p", "2")),
        ({"prompt": "p", "label": "2", "metadata": {"rm_type": "exact"}}, Record("p", "2", {"rm_type": "exact"})),
        ({"prompt": "p", "label": "2", "tools": [{"name": "t"}]}, Record("p", "2", {}, [{"name": "t"}])),
        ({"prompt": "p", "label": "2", "tools": []}, Record("p", "2")),
        (
            {"prompt": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}, USER], "label": "2"},
            Record([USER, {"role": "assistant", "content": None, "tool_calls": [{}]}, USER], "2"),
        ),
    ],
)
def test_a_row_that_is_a_prompt(row: dict[str, Any], expected: Record) -> None:
    assert FORMAT.read(row) == expected


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "1+1?", "label": "2"}, "has no key 'prompt': its keys: 'question', 'label'"),
        ({}, "has no key 'prompt': its keys: none"),
        ({"prompt": "1+1?", "answer": 2}, "has no key 'label': its keys: 'prompt', 'answer'"),
        ({"prompt": "", "label": "2"}, "'prompt' is empty"),
        ({"prompt": " \n", "label": "2"}, "'prompt' is empty"),
        ({"prompt": [], "label": "2"}, "'prompt' is empty"),
        ({"prompt": 5, "label": "2"}, "'prompt' is a number: a prompt is text, or a list of messages"),
        ({"prompt": None, "label": "2"}, "'prompt' is null: a prompt is text, or a list of messages"),
        ({"prompt": "p", "label": None}, "label 'label' is null: a label is text or a number"),
        ({"prompt": "p", "label": True}, "label 'label' is true or false: a label is text or a number"),
        ({"prompt": "p", "label": ["2"]}, "label 'label' is a list: a label is text or a number"),
        ({"prompt": "p", "label": " "}, "label 'label' is empty"),
        ({"prompt": "p", "label": float("nan")}, "label 'label' is no finite number: nan"),
        ({"prompt": "p", "label": float("-inf")}, "label 'label' is no finite number: -inf"),
        (
            {"prompt": "p", "label": "2", "metadata": {"when": date(2026, 1, 1)}},
            "'metadata' cannot be written as JSON: Object of type date is not JSON serializable",
        ),
        (
            {"prompt": "p", "label": "2", "metadata": {"rm_type": "exakt"}},
            "'rm_type' is no reward: 'exakt'; there are deepscaler, exact",
        ),
        (
            {"prompt": "p", "label": "2", "metadata": {"rm_type": ["exact"]}},
            "'rm_type' is no reward: ['exact']; there are deepscaler, exact",
        ),
        ({"prompt": ["1+1?"], "label": "2"}, "a message is no object: message 1 of 'prompt' is text"),
        ({"prompt": [USER, {"content": "x"}], "label": "2"}, "a message has no role: message 2 of 'prompt'"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text"}]}], "label": "2"},
            "content of a message is no text: message 1 of 'prompt': it is a list",
        ),
        ({"prompt": "ab\ud800", "label": "2"}, "is no Unicode text: prompt, character 3: half of a surrogate pair"),
        ({"prompt": "p", "label": "2", "metadata": "exact"}, "'metadata' is text: it must be an object"),
        ({"prompt": "p", "label": "2", "tools": ["t"]}, "'tools' is no list of objects"),
    ],
)
def test_a_row_that_is_none_says_why(row: dict[str, Any], told: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMAT.read(row)
    assert str(caught.value).startswith(told)


def test_messages_need_a_chat_template() -> None:
    with pytest.raises(RowError, match="only a chat template makes text of it"):
        RecordFormat("prompt", None, messages_allowed=False).read({"prompt": [USER]})


def test_without_a_label_key_labels_are_not_looked_at() -> None:
    record_format = RecordFormat("prompt", None, messages_allowed=False)
    assert record_format.read({"prompt": "p", "label": ["anything"]}) == Record("p", None)


def test_a_reward_that_nothing_reads_may_have_any_name() -> None:
    unread = RecordFormat("prompt", "label", messages_allowed=True)
    assert unread.read({"prompt": "p", "label": "2", "metadata": {"rm_type": "mine"}}).metadata == {"rm_type": "mine"}
