"""Prompt data as text: how much, how long, and what the engine will see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
from numpy.typing import NDArray

from r1hpc.data.dataset import PromptDataset
from r1hpc.types import Prompt

_BAR = 40
_TEXT = 2000
"""Characters of a prompt shown; of a longer one the begin and the end."""


def lengths_report(lengths: NDArray[numpy.int32]) -> Iterator[str]:
    """Percentiles and a histogram of the prompts' lengths, in lines."""
    low, middle, high, top = numpy.percentile(lengths, [0, 50, 99, 100], method="higher").tolist()
    yield f"tokens: {low:,} to {top:,}, median {middle:,}; 99 % have at most {high:,}; {lengths.sum():,} in all"
    buckets = histogram(lengths)
    most = max(count for _, _, count in buckets)
    width = len(f"{buckets[-1][1]:,}")
    for first, last, count in buckets:
        bar = "#" * -(-count * _BAR // most)
        yield f"  {first:>{width},} to {last:>{width},}  {bar:<{_BAR}}  {count:,}"


def histogram(lengths: NDArray[numpy.int32]) -> list[tuple[int, int, int]]:
    """(first, last, count): lengths from `first` to `last`, each bucket twice as wide as the one before."""
    exponents, counts = numpy.unique(numpy.frexp(lengths.astype(numpy.float64))[1], return_counts=True)
    found = dict(zip(exponents.tolist(), counts.tolist(), strict=True))
    every = range(min(found), max(found) + 1)
    return [(2 ** (exponent - 1), 2**exponent - 1, found.get(exponent, 0)) for exponent in every]


def prompt_report(prompt: Prompt, place: str, text: str) -> Iterator[str]:
    """One prompt as the engine is given it, in lines."""
    label = "no label" if prompt.label is None else f"label {visible(prompt.label)}"
    kind = f", rm_type {prompt.metadata['rm_type']}" if prompt.metadata.get("rm_type") else ""
    yield f"prompt {prompt.index} ({place}): {len(prompt.tokens):,} tokens, {label}{kind}"
    yield f"  first tokens: {' '.join(map(str, prompt.tokens[:8].tolist()))}"
    for line in _shortened(text).split("\n"):
        yield f"  | {line}"


def visible(text: str) -> str:
    """The text with line ends as `\\n`, and what would move a terminal's cursor escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def _shortened(text: str) -> str:
    """Visible, a line a line; the end of a line is shown too, because it is a token."""
    if len(text) > _TEXT:
        half = _TEXT // 2
        shown = [text[:half], f"... {len(text) - _TEXT:,} characters more ...", text[-half:]]
        return "\n".join([_lines(shown[0]), shown[1], _lines(shown[2])])
    return _lines(text)


def _lines(text: str) -> str:
    return "\n".join(visible(line) for line in text.splitlines(keepends=True))


def dataset_report(dataset: PromptDataset, first: Sequence[Prompt]) -> Iterator[str]:
    """Everything of a data set that its summary has not said, in lines."""
    if dataset.lengths is not None:
        yield from lengths_report(dataset.lengths)
    for prompt in first:
        place = dataset.rows.place(prompt.index + dataset.sliced.start)
        yield ""
        yield from prompt_report(prompt, place, dataset.encoder.show(prompt.tokens))
