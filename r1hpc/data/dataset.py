"""The prompts of one file that can be used, numbered in the order of the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy
import xxhash
from numpy.typing import NDArray

from r1hpc.config.base import split_slice
from r1hpc.config.training import RewardType, RolloutConfig
from r1hpc.data.errors import DataError
from r1hpc.data.files import open_rows, slice_rows
from r1hpc.data.left_out import MAX_BAD_SHARE, LeftOut
from r1hpc.data.progress import Say, with_progress
from r1hpc.data.record import Record, RecordFormat
from r1hpc.data.rows import RowError, Rows
from r1hpc.data.template import PromptEncoder
from r1hpc.types import Prompt

_BATCH = 256
"""Texts tokenized at once: enough for the threads of a fast tokenizer."""


@dataclass(frozen=True)
class DataSettings:
    """A prompt file and how its rows are read."""

    prompt_data: str
    """path, or path@[a:b]"""
    input_key: str
    label_key: str | None = None
    apply_chat_template: bool = False
    max_prompt_len: int | None = None
    """Tokens; longer prompts are counted and left out."""
    rewards: tuple[str, ...] | None = None
    """What a row may name as its own reward; None where it is not read."""
    max_bad_share: float = MAX_BAD_SHARE

    @classmethod
    def of(cls, rollout: RolloutConfig, prompt_data: str | None = None) -> DataSettings:
        """Of the configuration; an evaluation set has its own file, and is read like the prompts."""
        return cls(
            prompt_data=prompt_data or rollout.prompt_data,
            input_key=rollout.input_key,
            label_key=rollout.label_key,
            apply_chat_template=rollout.apply_chat_template,
            max_prompt_len=rollout.rollout_max_prompt_len,
            # A function of the user takes the place of all other rewards.
            rewards=get_args(RewardType) if rollout.custom_rm_path is None else None,
        )

    @property
    def format(self) -> RecordFormat:
        """Where in a row things are."""
        return RecordFormat(self.input_key, self.label_key, self.apply_chat_template, self.rewards)


@dataclass(frozen=True)
class PromptDataset:
    """Rows that are prompts. Texts stay in the file and tokens are made when asked for: 24 bytes a row in memory."""

    settings: DataSettings
    encoder: PromptEncoder
    rows: Rows
    sliced: range
    """Rows of the file that the slice means."""
    kept: NDArray[numpy.int64]
    """[N] rows of the file that are prompts, ascending."""
    left_out: LeftOut
    lengths: NDArray[numpy.int32] | None
    """[N] tokens of each, where they were counted."""

    def __len__(self) -> int:
        return len(self.kept)

    def prompts(self, places: NDArray[numpy.int64], epoch: int) -> list[Prompt]:
        """The prompts at these places of `kept`, in this order. Raises DataError if the file was changed."""
        rows = self.kept[places]
        records = [self._record(value) for value in self.rows.read(rows)]
        encoded = self.encoder.encode([self.encoder.text(record) for record in records])
        return [
            Prompt(int(row) - self.sliced.start, epoch, tokens, record.label, record.metadata)
            for row, record, tokens in zip(rows, records, encoded, strict=True)
        ]

    def place_of(self, index: int) -> int:
        """Place in `kept` of the prompt with this index. Raises DataError where there is none."""
        row = index + self.sliced.start
        place = int(numpy.searchsorted(self.kept, row))
        if place == len(self.kept) or self.kept[place] != row:
            raise DataError(f"{self.settings.prompt_data}: row {index} is no prompt of this data")
        return place

    def identity(self) -> dict[str, str]:
        """What decides which prompts there are, by name; where the file lies does not matter."""
        return {
            "file": f"xxh3 {self.rows.digest}",
            "slice": f"[{self.sliced.start}:{self.sliced.stop}]",
            "input_key": self.settings.input_key,
            "prompts": f"{len(self)} (xxh3 {xxhash.xxh3_64_hexdigest(self.kept.tobytes())})",
        }

    def summary(self) -> list[str]:
        """What is used and what is left out, in lines for people."""
        lost = self.left_out
        lines = [f"{self.settings.prompt_data}: {len(self):,} prompts of {len(self.sliced):,} rows"]
        if lost.num_bad:
            lines += [f"left out, no prompts: {lost.num_bad:,}", *lost.bad_lines()]
        if lost.num_overlong:
            lines.append(
                f"left out, longer than rollout_max_prompt_len = {self.settings.max_prompt_len}: {lost.num_overlong:,}"
                f" (the longest has {lost.longest:,} tokens)"
            )
        return lines

    def _record(self, value: dict[str, object] | RowError) -> Record:
        try:
            if isinstance(value, RowError):
                raise value
            return self.settings.format.read(value)
        except RowError as error:  # such rows are not kept, so this one was another
            raise DataError(f"{self.settings.prompt_data}: was changed while it was in use: a row {error}") from error


def load_dataset(settings: DataSettings, encoder: PromptEncoder, *, say: Say, measure: bool = False) -> PromptDataset:
    """Check every row of the slice, so that what can be wrong with it is found before a GPU waits for it.

    Every conversation goes through the template; tokens are counted only with max_prompt_len, or to `measure`: that
    is most of the time (17,000 prompts of 350 letters on one core: 1 s, and 2 s more to count). `say` gets progress,
    and at the end what is left out. Raises DataError for a file that cannot be read, too many bad rows, or no prompt.
    """
    path = Path(split_slice(settings.prompt_data)[0])
    rows = open_rows(path)
    sliced = slice_rows(settings.prompt_data, len(rows))
    left_out = LeftOut()
    texts = _texts(rows, sliced, settings, encoder, left_out, say)
    kept, lengths = _kept(texts, encoder, settings.max_prompt_len, measure, left_out)
    left_out.check(settings.prompt_data, len(sliced), settings.max_bad_share)
    if not len(kept):
        raise DataError(
            f"{settings.prompt_data}: no prompt is left of {len(sliced):,} rows: {left_out.num_overlong:,} are longer "
            f"than rollout.rollout_max_prompt_len = {settings.max_prompt_len} tokens, the longest has "
            f"{left_out.longest:,}; raise it"
        )
    dataset = PromptDataset(settings, encoder, rows, sliced, kept, left_out, lengths)
    for line in dataset.summary():
        say(line)
    return dataset


def _texts(
    rows: Rows, sliced: range, settings: DataSettings, encoder: PromptEncoder, left_out: LeftOut, say: Say
) -> Iterator[tuple[int, str]]:
    """(row, text to tokenize) of each row that is a prompt."""
    record_format = settings.format
    values = with_progress(rows.read(sliced), len(sliced), f"reading {settings.prompt_data}", say)
    for row, value in zip(sliced, values, strict=True):
        try:
            if isinstance(value, RowError):
                raise value
            yield row, encoder.text(record_format.read(value))
        except RowError as error:
            left_out.add_bad(rows.place(row), error)


def _kept(
    texts: Iterable[tuple[int, str]],
    encoder: PromptEncoder,
    max_prompt_len: int | None,
    measure: bool,
    left_out: LeftOut,
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int32] | None]:
    """Rows that are not too long, and their numbers of tokens if these were counted."""
    texts = iter(texts)
    kept: list[NDArray[numpy.int64]] = []
    lengths: list[NDArray[numpy.int32]] = []
    counting = measure or max_prompt_len is not None
    while batch := list(islice(texts, _BATCH)):
        rows = numpy.array([row for row, _ in batch], dtype=numpy.int64)
        if counting:
            rows, counts = _fitting(rows, encoder.encode([text for _, text in batch]), max_prompt_len, left_out)
            lengths.append(counts)
        elif not kept:
            # The first one shows whether the tokenizer adds what the template has written.
            encoder.encode([batch[0][1]])
        kept.append(rows)
    if not kept:
        return numpy.empty(0, dtype=numpy.int64), None
    return numpy.concatenate(kept), numpy.concatenate(lengths) if counting else None


def _fitting(
    rows: NDArray[numpy.int64],
    encoded: Sequence[NDArray[numpy.int32]],
    max_prompt_len: int | None,
    left_out: LeftOut,
) -> tuple[NDArray[numpy.int64], NDArray[numpy.int32]]:
    """Those of a batch that are not too long, and their numbers of tokens."""
    counts = numpy.array([len(tokens) for tokens in encoded], dtype=numpy.int32)
    if max_prompt_len is None:
        return rows, counts
    fits = counts <= max_prompt_len
    for count in counts[~fits]:
        left_out.add_overlong(int(count))
    return rows[fits], counts[fits]
