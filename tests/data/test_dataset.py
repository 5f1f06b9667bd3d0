"""What is kept of a file, what is left out, and that it is said."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from r1hpc.config.training import RolloutConfig
from r1hpc.data.dataset import DataSettings, PromptDataset, load_dataset
from r1hpc.data.errors import DataError
from r1hpc.data.progress import with_progress
from r1hpc.data.template import PromptEncoder

WriteLines = Callable[..., Path]


def _rows(count: int) -> list[Any]:
    return [{"prompt": f"{n}+{n}?", "label": str(2 * n)} for n in range(count)]


def _load(
    path: Path | str, encoder: PromptEncoder, said: list[str] | None = None, measure: bool = False, **settings: Any
) -> PromptDataset:
    base = DataSettings(str(path), "prompt", "label", encoder.apply_chat_template)
    said = [] if said is None else said
    return load_dataset(replace(base, **settings), encoder, say=said.append, measure=measure)


def _indexes(dataset: PromptDataset) -> list[int]:
    return [prompt.index for prompt in dataset.prompts(numpy.arange(len(dataset)), 0)]


def test_a_prompt_carries_what_its_row_says(write_lines: WriteLines, chat: PromptEncoder) -> None:
    row = {"prompt": "1+1?", "label": 2, "metadata": {"rm_type": "exact"}}
    (prompt,) = _load(write_lines(row), chat).prompts(numpy.array([0]), epoch=7)
    assert prompt.tokens.tolist() == [1, 261, *(byte + 3 for byte in b"1+1?"), 262, 259, 13]
    assert (prompt.index, prompt.epoch, prompt.label, prompt.metadata) == (0, 7, "2", {"rm_type": "exact"})


def test_a_slice_counts_rows_from_its_begin(write_lines: WriteLines, raw: PromptEncoder) -> None:
    dataset = _load(f"{write_lines(*_rows(10))}@[-4:-1]", raw)
    prompts = dataset.prompts(numpy.arange(3), 0)
    assert [(prompt.index, prompt.label) for prompt in prompts] == [(0, "12"), (1, "14"), (2, "16")]


def test_few_bad_rows_are_left_out_and_said(write_lines: WriteLines, raw: PromptEncoder) -> None:
    rows = _rows(2000)
    rows[3], rows[1500] = '{"prompt": ', {"prompt": "no label"}
    said: list[str] = []
    dataset = _load(write_lines(*rows), raw, said)
    assert len(dataset) == 1998
    assert _indexes(dataset)[2:4] == [2, 4]  # an index is the place in the file, whatever is left out
    assert said == [
        f"{dataset.settings.prompt_data}: 1,998 prompts of 2,000 rows",
        "left out, no prompts: 2",
        "  1 x is not JSON",
        "  1 x has no key 'label'",
        "  line 4 is not JSON: Expecting value at character 12",
        "  line 1501 has no key 'label': its keys: 'prompt'",
    ]


def test_more_bad_rows_than_one_in_a_thousand_are_fatal(write_lines: WriteLines, raw: PromptEncoder) -> None:
    rows = _rows(2000)
    rows[3] = rows[4] = rows[1500] = "{}"
    with pytest.raises(DataError) as caught:
        _load(write_lines(*rows), raw)
    told = str(caught.value)
    assert "3 of 2,000 rows (0.150%) are no prompts; at most 0.100% may be left out" in told
    assert "  3 x has no key 'prompt'\n  line 4 has no key 'prompt': its keys: none\n  line 5 has" in told
    assert len(_load(write_lines(*rows), raw, max_bad_share=0.0015)) == 1997


def test_one_bad_row_of_a_small_file_is_fatal(write_lines: WriteLines, raw: PromptEncoder) -> None:
    with pytest.raises(DataError, match=r"1 of 999 rows \(0\.100%\) are no prompts"):
        _load(write_lines(*_rows(998), "[]"), raw)


def test_bad_rows_outside_the_slice_do_not_matter(write_lines: WriteLines, raw: PromptEncoder) -> None:
    assert len(_load(f"{write_lines(*_rows(5), 'broken')}@[:-1]", raw)) == 5


def test_a_wrong_key_names_the_keys_that_are_there(write_lines: WriteLines, raw: PromptEncoder) -> None:
    with pytest.raises(DataError, match="has no key 'question': its keys: 'prompt', 'label'") as caught:
        _load(write_lines(*_rows(2000)), raw, input_key="question")
    assert "set rollout.input_key" in str(caught.value)
    assert str(caught.value).endswith("  and 1,997 more")


def test_too_long_prompts_are_left_out_and_said(write_lines: WriteLines, chat: PromptEncoder) -> None:
    # The template adds five tokens: begin, User, Assistant, <think>, newline.
    rows = [{"prompt": "x" * length, "label": "1"} for length in (5, 6, 4, 100, 1)]
    said: list[str] = []
    dataset = _load(write_lines(*rows), chat, said, max_prompt_len=10)
    assert _indexes(dataset) == [0, 2, 4]
    assert dataset.lengths is not None and dataset.lengths.tolist() == [10, 9, 6]
    assert said[1] == "left out, longer than rollout_max_prompt_len = 10: 2 (the longest has 105 tokens)"


def test_lengths_are_right_over_many_batches(write_lines: WriteLines, raw: PromptEncoder) -> None:
    lengths = [1 + (7 * n) % 50 for n in range(1000)]
    path = write_lines(*({"prompt": "x" * length, "label": "1"} for length in lengths))
    dataset = _load(path, raw, measure=True)
    assert dataset.lengths is not None and dataset.lengths.tolist() == lengths
    shorter = _load(path, raw, max_prompt_len=25)
    assert _indexes(shorter) == [n for n, length in enumerate(lengths) if length <= 25]
    assert _load(path, raw).lengths is None


def test_no_prompt_left_is_an_error(write_lines: WriteLines, raw: PromptEncoder) -> None:
    with pytest.raises(DataError, match=r"no prompt is left of 3 rows: 3 are longer than .* = 2 tokens, the longest"):
        _load(write_lines(*_rows(3)), raw, max_prompt_len=2)


def test_prompts_that_the_template_refuses_are_bad_rows(write_lines: WriteLines, chat: PromptEncoder) -> None:
    messages = [{"role": "system", "content": chat.tokenizer.bos_token}]
    with pytest.raises(DataError, match=r"line 2 begins the sentence twice"):
        _load(write_lines(*_rows(1), {"prompt": messages, "label": "1"}), chat)


def test_memory_does_not_hold_the_texts(write_lines: WriteLines, raw: PromptEncoder) -> None:
    num = 3000
    path = write_lines(*({"prompt": f"{n} " + "x" * 4000, "label": "1"} for n in range(num)))  # 12 MB
    _load(path, raw)
    tracemalloc.start()
    try:
        dataset = _load(path, raw)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(dataset) == num
    assert held < 40 * num
    assert peak < 3_000_000  # a batch of texts


def test_progress_says_rate_and_time_left() -> None:
    said: list[str] = []
    now = iter([0.0, 1.0, 6.0, 7.0, 12.0])  # when it began, then at each item
    assert list(with_progress("abcd", 100, "reading", said.append, clock=lambda: next(now))) == list("abcd")
    # One item in 6 s leaves 99 * 6 s; three in 12 s leave 97 * 4 s.
    assert said == ["reading: 1 of 100, 0/s, 9.9 min left", "reading: 3 of 100, 0/s, 6.47 min left"]


def test_a_reward_of_a_row_is_checked_unless_a_function_takes_its_place(
    write_lines: WriteLines, raw: PromptEncoder
) -> None:
    path = write_lines({"prompt": "1+1?", "label": 2, "metadata": {"rm_type": "exakt"}})
    fields: dict[str, Any] = {
        "prompt_data": str(path),
        "input_key": "prompt",
        "label_key": "label",
        "num_rollout": 1,
        "rollout_batch_size": 1,
        "rollout_max_response_len": 1,
    }
    built_in = DataSettings.of(RolloutConfig(**fields, rm_type="exact"))
    with pytest.raises(DataError, match="line 1 'rm_type' is no reward: 'exakt'; there are deepscaler, math_verify"):
        load_dataset(built_in, raw, say=print)
    custom = DataSettings.of(RolloutConfig(**fields, custom_rm_path="my.reward"))
    assert len(load_dataset(custom, raw, say=print)) == 1


def test_a_row_that_is_no_prompt_any_more_is_a_changed_file(write_lines: WriteLines, raw: PromptEncoder) -> None:
    path = write_lines({"prompt": "1+1?", "label": 2})
    dataset = _load(path, raw)
    stamp = path.stat()
    path.write_bytes(path.read_bytes().replace(b"prompt", b"tpmorp"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as between the look at the time and the read
    with pytest.raises(DataError, match="was changed while it was in use: a row has no key 'prompt'"):
        dataset.prompts(numpy.array([0]), 0)
