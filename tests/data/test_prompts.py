"""Each prompt once an epoch, and a cursor that resumes exactly."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.config import load_config
from r1hpc.data.dataset import DataSettings, PromptDataset, load_dataset
from r1hpc.data.errors import DataError
from r1hpc.data.order import epoch_order
from r1hpc.data.prompts import PromptSource, open_prompts
from r1hpc.data.template import PromptEncoder
from r1hpc.types import Prompt

HOME = Path(__file__).resolve().parents[2]
NUM = 7
takes = st.lists(st.integers(0, 20), max_size=8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the file of the seven prompts."""
    directory = tmp_path_factory.mktemp("prompts")
    _write(directory / "prompts.jsonl", NUM)
    return directory


@pytest.fixture(scope="module")
def dataset(directory: Path, raw: PromptEncoder) -> PromptDataset:
    """Seven prompts."""
    return _load(directory / "prompts.jsonl", raw)


def test_epochs_follow_each_other_in_their_orders(dataset: PromptDataset) -> None:
    source = PromptSource(dataset, shuffle=True, seed=42)
    orders = [epoch_order(NUM, seed=42, epoch=epoch, shuffle=True).tolist() for epoch in range(3)]
    assert len(set(map(tuple, orders))) == 3
    expected = [(index, epoch) for epoch, order in enumerate(orders) for index in order]
    assert _names(source.take(5)) == expected[:5]
    assert (source.epoch, source.offset, source.num_prompts) == (0, 5, 7)
    assert _names(source.take(4)) == expected[5:9]  # from two epochs
    assert (source.epoch, source.offset) == (1, 2)
    assert _names(source.take(5)) == expected[9:14]
    assert (source.epoch, source.offset) == (2, 0)
    assert _names(source.take(0)) == []


def test_without_shuffle_the_file_is_read_again_and_again(dataset: PromptDataset) -> None:
    prompts = PromptSource(dataset, shuffle=False, seed=42).take(16)
    assert [prompt.index for prompt in prompts] == [*range(7), *range(7), 0, 1]
    assert [prompt.label for prompt in prompts[5:9]] == ["L5", "L6", "L0", "L1"]


@settings(deadline=None, max_examples=50)
@given(counts=takes, seed=st.integers(0, 2**32 - 1), shuffle=st.booleans())
def test_each_prompt_comes_once_an_epoch(dataset: PromptDataset, counts: list[int], seed: int, shuffle: bool) -> None:
    source = PromptSource(dataset, shuffle=shuffle, seed=seed)
    taken = [name for count in counts for name in _names(source.take(count))]
    assert len(taken) == sum(counts)
    whole, part = divmod(len(taken), NUM)
    seen = Counter(taken)
    assert set(seen.values()) <= {1}
    by_epoch = Counter(epoch for _, epoch in taken)
    assert by_epoch == Counter(dict.fromkeys(range(whole), NUM)) + Counter({whole: part})


@settings(deadline=None, max_examples=50)
@given(counts=takes, seed=st.integers(0, 2**32 - 1))
def test_the_order_does_not_depend_on_how_many_are_taken_at_once(
    dataset: PromptDataset, counts: list[int], seed: int
) -> None:
    source, other = (PromptSource(dataset, shuffle=True, seed=seed) for _ in range(2))
    taken = [name for count in counts for name in _names(source.take(count))]
    assert taken == _names(other.take(sum(counts)))


@settings(deadline=None, max_examples=50)
@given(before=takes, after=takes, seed=st.integers(0, 2**32 - 1), shuffle=st.booleans())
def test_a_saved_cursor_goes_on_exactly(
    dataset: PromptDataset, directory: Path, before: list[int], after: list[int], seed: int, shuffle: bool
) -> None:
    source = PromptSource(dataset, shuffle=shuffle, seed=seed)
    for count in before:
        source.take(count)
    saved = json.loads(json.dumps(source.state()))
    loaded = _load(directory / "prompts.jsonl", dataset.encoder)  # as another process would
    resumed = PromptSource(loaded, shuffle=shuffle, seed=seed)
    resumed.load_state(saved)
    assert resumed.state() == saved
    for count in after:
        assert list(map(_content, source.take(count))) == list(map(_content, resumed.take(count)))
    assert resumed.state() == source.state()


def test_a_prompt_is_had_again_by_its_name(directory: Path, raw: PromptEncoder) -> None:
    dataset = _load(f"{directory / 'prompts.jsonl'}@[2:6]", raw)
    source = PromptSource(dataset, shuffle=True, seed=1)
    taken = source.take(6)
    saved = source.state()
    assert [_content(source.again(p.index, p.epoch)) for p in taken] == list(map(_content, taken))
    assert source.state() == saved
    with pytest.raises(DataError, match="row 4 is no prompt of this data"):
        source.again(4, 0)


def test_the_configuration_decides(directory: Path, tokenizer_directory: Path) -> None:
    settings = {
        "rollout.prompt_data": f"{directory / 'prompts.jsonl'}@[:5]",
        "rollout.rollout_seed": 7,
        "rollout.rollout_max_prompt_len": 9,
        "ckpt.hf_checkpoint": tokenizer_directory,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    said: list[str] = []
    source = open_prompts(load_config(HOME / "tests/pipeline.yaml", overrides=overrides).config, say=said.append)
    # Four letters and five tokens of the template; the prompt 4 has one letter more.
    assert [prompt.index for prompt in source.take(4)] == epoch_order(4, seed=7, epoch=0, shuffle=True).tolist()
    assert [len(prompt.tokens) for prompt in source.take(4)] == [9] * 4
    assert said[1] == "left out, longer than rollout_max_prompt_len = 9: 1 (the longest has 10 tokens)"


def test_a_moved_file_is_the_same_data(directory: Path, raw: PromptEncoder, tmp_path: Path) -> None:
    saved = _source(directory / "prompts.jsonl", raw).state()
    _write(tmp_path / "moved.jsonl", NUM)
    _source(tmp_path / "moved.jsonl", raw).load_state(saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 43}, "  order: was shuffled, seed 42, is shuffled, seed 43"),
        ({"shuffle": False}, "  order: was shuffled, seed 42, is as in the file"),
        ({"num": NUM + 1}, "  file: was xxh3 "),
        ({"text": "{n}-{n}?"}, "  file: was xxh3 "),
        ({"lines": "@[:6]"}, "  slice: was [0:7], is [0:6]"),
        ({"input_key": "label"}, "  input_key: was prompt, is label"),
        ({"max_prompt_len": 4}, "  prompts: was 7 (xxh3 "),
    ],
)
def test_other_data_or_another_order_is_refused_naming_both_digests(
    directory: Path, raw: PromptEncoder, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    saved = _source(directory / "prompts.jsonl", raw).state()
    path = tmp_path / "prompts.jsonl"
    _write(path, change.pop("num", NUM), change.pop("text", "{n}+{n}?"))
    other = _source(f"{path}{change.pop('lines', '')}", raw, **change)
    other.take(2)
    with pytest.raises(DataError) as caught:
        other.load_state(saved)
    message = str(caught.value)
    here = other.state()["digest"]
    assert f"its digest was {saved['digest']}, is {here}" in message
    assert told in message
    assert other.offset == 2  # as it was


@pytest.mark.parametrize(
    "broken", [{"offset": 7}, {"offset": -1}, {"epoch": -1}, {"epoch": True}, {"offset": "3"}, {"epoch": 1.0}]
)
def test_a_cursor_that_cannot_be_is_refused(dataset: PromptDataset, broken: dict[str, Any]) -> None:
    source = PromptSource(dataset, shuffle=True, seed=42)
    with pytest.raises(DataError, match=r"the offset is below num_prompts = 7"):
        source.load_state(source.state() | broken)
    with pytest.raises(DataError, match="its digest was None"):
        source.load_state({})


def test_where_taking_fails_the_cursor_stays(raw: PromptEncoder, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    _write(path, NUM)
    source = _source(path, raw)
    first = _names(source.take(3))
    before = source.state()
    _write(path, NUM, text="{n}*{n}?")
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match="was changed while it was in use"):
        source.take(3)
    assert source.state() == before
    _write(path, NUM)
    os.utime(path, ns=(2, 2))
    assert first + _names(source.take(4)) == _names(_source(path, raw).take(7))


def _write(path: Path, num: int, text: str = "{n}+{n}?") -> None:
    rows = [{"prompt": text.format(n=n) + "x" * (n == 4), "label": f"L{n}"} for n in range(num)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _load(prompt_data: Path | str, encoder: PromptEncoder, **settings: Any) -> PromptDataset:
    known = {"input_key": "prompt", "label_key": "label", **settings}
    return load_dataset(DataSettings(str(prompt_data), **known), encoder, say=_ignore)


def _source(
    prompt_data: Path | str, encoder: PromptEncoder, *, seed: int = 42, shuffle: bool = True, **settings: Any
) -> PromptSource:
    return PromptSource(_load(prompt_data, encoder, **settings), shuffle=shuffle, seed=seed)


def _names(prompts: list[Prompt]) -> list[tuple[int, int]]:
    return [(prompt.index, prompt.epoch) for prompt in prompts]


def _content(prompt: Prompt) -> tuple[object, ...]:
    return prompt.index, prompt.epoch, prompt.tokens.tolist(), prompt.label, dict(prompt.metadata)


def _ignore(line: str) -> None:
    """What is said is tested with the data set."""
