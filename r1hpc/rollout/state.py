"""What a sampler remembers over a restart, as JSON and arrays: cursor, counters, recycled prompts, begun responses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
import xxhash
from numpy.typing import NDArray

from r1hpc.publish import publish_json, publishing
from r1hpc.rollout.group import Draft, Queued, SamplerError
from r1hpc.types import Generation, Prompt, VersionSpan

FORMAT = 1
RECORD_FILE = "sampler.json"
ARRAYS_FILES = "sampler-{digest}.npz"
"""Named for the content, so that a save never changes the arrays of the one before it."""

_EMPTY = {"prompt_tokens": numpy.int32, "response_tokens": numpy.int32, "response_logprobs": numpy.float32}
"""Every array, with its type; each is the concatenation over the queue, in order."""


@dataclass(frozen=True)
class SamplerState:
    """A sampler between two rollouts."""

    cursor: Mapping[str, Any]
    """Of the prompts, as PromptSource.state() gives it."""
    next_group: int
    """Index of the next group that is submitted."""
    queue: tuple[Queued, ...]
    """Prompts that are served before the data, in order."""

    def to_parts(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """The state as JSON and arrays."""
        record = {
            "format": FORMAT,
            "cursor": dict(self.cursor),
            "next_group": self.next_group,
            "queue": [_queued_record(queued) for queued in self.queue],
        }
        generations = [draft.generation for queued in self.queue for draft in queued.begun if draft is not None]
        arrays = {
            "prompt_tokens": _joined("prompt_tokens", [queued.prompt.tokens for queued in self.queue]),
            "response_tokens": _joined("response_tokens", [generation.tokens for generation in generations]),
            "response_logprobs": _joined("response_logprobs", [generation.logprobs for generation in generations]),
        }
        return record, arrays

    @classmethod
    def from_parts(cls, record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SamplerState:
        """The state that `to_parts` took apart. Raises SamplerError where the parts do not fit together."""
        if record.get("format") != FORMAT:
            raise SamplerError(f"sampler state has format {record.get('format')!r}; this version reads format {FORMAT}")
        if missing := [name for name in _EMPTY if name not in arrays]:
            raise SamplerError(f"sampler state lacks the arrays {', '.join(missing)}")
        readers = {name: _Reader(name, arrays[name]) for name in _EMPTY}
        queue = tuple(_read_queued(item, readers) for item in record["queue"])
        for reader in readers.values():
            reader.check_end()
        return cls(record["cursor"], record["next_group"], queue)

    def save(self, directory: Path) -> None:
        """Write the state to two files in `directory`; killed at any moment it leaves this state, or the one before.

        The JSON file is the state: it names its arrays, which are published before it.
        """
        record, arrays = self.to_parts()
        name = ARRAYS_FILES.format(digest=_digest(arrays))
        with publishing(directory / name) as stream:
            numpy.savez(stream, **arrays)  # type: ignore[arg-type]
        publish_json(directory / RECORD_FILE, record | {"arrays": name})
        for old in directory.glob(ARRAYS_FILES.format(digest="*")):
            if old.name != name:
                old.unlink(missing_ok=True)

    @classmethod
    def load(cls, directory: Path) -> SamplerState:
        """Read what `save` wrote. Raises SamplerError naming the file that is missing or wrong."""
        try:
            record = json.loads((directory / RECORD_FILE).read_text())
            with numpy.load(directory / Path(record["arrays"]).name, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError, TypeError, BadZipFile) as error:
            said = f"{type(error).__name__}: {error}"
            raise SamplerError(f"sampler state in {directory} cannot be read: {said}") from error
        if (found := ARRAYS_FILES.format(digest=_digest(arrays))) != record["arrays"]:
            raise SamplerError(
                f"sampler state in {directory}: {RECORD_FILE} was saved with {record['arrays']}, whose content is that"
                f" of {found} now: take another commit"
            )
        return cls.from_parts(record, arrays)


def _queued_record(queued: Queued) -> dict[str, Any]:
    prompt = queued.prompt
    return {
        "index": prompt.index,
        "epoch": prompt.epoch,
        "num_tokens": len(prompt.tokens),
        "label": prompt.label,
        "metadata": dict(prompt.metadata),
        "times_dropped": queued.times_dropped,
        "begun": [None if draft is None else _draft_record(draft) for draft in queued.begun],
    }


def _draft_record(draft: Draft) -> dict[str, Any]:
    generation = draft.generation
    return {
        "num_tokens": len(generation.tokens),
        "finish_reason": generation.finish_reason,
        "versions": [[span.version, span.begin, span.end] for span in generation.versions],
        "reward": draft.reward,
    }


def _read_queued(item: Mapping[str, Any], readers: Mapping[str, _Reader]) -> Queued:
    prompt = Prompt(
        index=item["index"],
        epoch=item["epoch"],
        tokens=readers["prompt_tokens"].take(item["num_tokens"]),
        label=item["label"],
        metadata=item["metadata"],
    )
    begun = tuple(None if draft is None else _read_draft(draft, readers) for draft in item["begun"])
    return Queued(prompt, item["times_dropped"], begun)


def _read_draft(item: Mapping[str, Any], readers: Mapping[str, _Reader]) -> Draft:
    generation = Generation(
        tokens=readers["response_tokens"].take(item["num_tokens"]),
        logprobs=readers["response_logprobs"].take(item["num_tokens"]),
        finish_reason=item["finish_reason"],
        versions=tuple(VersionSpan(*span) for span in item["versions"]),
    )
    return Draft(generation, item["reward"])


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Of the content of all arrays, their lengths included."""
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape};".encode())
        digest.update(numpy.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _joined(name: str, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return numpy.concatenate([numpy.empty(0, dtype=_EMPTY[name]), *arrays]).astype(_EMPTY[name], copy=False)


class _Reader:
    """Takes one array apart, front to back."""

    def __init__(self, name: str, array: NDArray[Any]) -> None:
        self._name = name
        self._array = array
        self._place = 0

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` values, copied: the whole array may go when all are taken."""
        taken = self._array[self._place : self._place + count].copy()
        self._place += count
        return taken

    def check_end(self) -> None:
        """Raise SamplerError unless exactly everything was taken."""
        if self._place != len(self._array):
            raise SamplerError(
                f"sampler state: {self._name} has {len(self._array)} values, but {RECORD_FILE} speaks of {self._place};"
                " the two files are not of one save"
            )
