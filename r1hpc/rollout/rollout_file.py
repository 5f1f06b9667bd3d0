"""A rollout as one file: JSON and arrays in an .npz, exactly equal when it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy
from numpy.typing import NDArray

from r1hpc.publish import publishing
from r1hpc.rollout.group import Group, SamplerError
from r1hpc.rollout.report import GroupCounts, RolloutReport, SampleStatistics, Timing
from r1hpc.rollout.sampler import Rollout
from r1hpc.rollout.state import SamplerState
from r1hpc.types import Prompt, Sample

FORMAT = 1
_RECORD = "record"
"""The array that holds the JSON, as bytes."""
_STATE = "state_"
"""What the arrays of the sampler's state begin with."""
_TYPES = {"tokens": numpy.int32, "logprobs": numpy.float32, "masks": numpy.bool_}
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    BadZipFile,
    RuntimeError,  # a zip file that a flipped bit made encrypted, or of a method that does not exist
    SamplerError,
)
"""What damage of every byte of a file was seen to raise."""


@dataclass(frozen=True)
class RecordedRollout:
    """A rollout, and what the sampler remembered after it."""

    rollout: Rollout
    state: SamplerState


def rollout_path(directory: Path, rollout_id: int) -> Path:
    """The file of a rollout."""
    return directory / f"rollout_{rollout_id:07d}.npz"


def save_rollout(path: Path, recorded: RecordedRollout) -> None:
    """Publish it; killed at any moment the file is what it was, or this."""
    rollout = recorded.rollout
    arrays = _Arrays()
    state_record, state_arrays = recorded.state.to_parts()
    record = {
        "format": FORMAT,
        "report": asdict(rollout.report),
        "groups": [_group_record(group, arrays) for group in rollout.groups],
        "given_up": [_prompt_record(prompt, arrays) for prompt in rollout.given_up],
        "state": state_record,
    }
    text = numpy.frombuffer(json.dumps(record).encode(), dtype=numpy.uint8)
    stored = {_STATE + name: array for name, array in state_arrays.items()} | arrays.joined() | {_RECORD: text}
    with publishing(path) as stream:
        numpy.savez(stream, **stored)  # type: ignore[arg-type]


def load_rollout(path: Path) -> RecordedRollout:
    """What `save_rollout` wrote. Raises SamplerError naming the file when it is not there, damaged, or another's."""
    try:
        with numpy.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        record = json.loads(arrays[_RECORD].tobytes())
        if record["format"] == FORMAT:
            return _read(record, arrays)
    except FileNotFoundError:
        raise SamplerError(_missing(path)) from None
    except _UNREADABLE as error:
        raise SamplerError(
            f"{path}: is no rollout that can be read ({type(error).__name__}: {error}); record it again"
        ) from error
    raise SamplerError(f"{path}: has format {record['format']!r}; this version reads format {FORMAT}")


def _missing(path: Path) -> str:
    there = sorted(file.name for file in path.parent.glob("rollout_*.npz"))
    found = f"the directory has {there[0]} to {there[-1]}, {len(there)} files" if there else "the directory has none"
    return (
        f"{path}: is not there, and {found}; debug.replay_rollouts must name a directory with every rollout from the"
        " first iteration to rollout.num_rollout, as debug.save_rollouts: true keeps them: record them, or lower"
        " num_rollout"
    )


class _Arrays:
    """Pieces of each array, in the order in which they are read again."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in _TYPES}

    def add(self, name: str, piece: NDArray[Any] | None) -> int | None:
        """Its length; null for none."""
        if piece is None:
            return None
        assert piece.dtype == _TYPES[name], f"{name}: {piece.dtype} would not come back as it is"
        self._pieces[name].append(piece)
        return len(piece)

    def joined(self) -> dict[str, NDArray[Any]]:
        return {name: numpy.concatenate([numpy.empty(0, _TYPES[name]), *self._pieces[name]]) for name in _TYPES}


class _Reader:
    """Takes the arrays apart again, front to back."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        self._places = dict.fromkeys(_TYPES, 0)

    def take(self, name: str, length: int | None) -> Any:
        """The next piece of an array; null where the length is."""
        if length is None:
            return None
        begin = self._places[name]
        self._places[name] += length
        return self._arrays[name][begin : begin + length].copy()

    def check_end(self) -> None:
        """Raise ValueError unless exactly everything was taken."""
        if other := [name for name, place in self._places.items() if place != len(self._arrays[name])]:
            raise ValueError(f"{', '.join(other)}: other lengths than the record says")


def _read(record: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RecordedRollout:
    reader = _Reader(arrays)
    groups = [_read_group(group, reader) for group in record["groups"]]
    given_up = tuple(_read_prompt(prompt, reader) for prompt in record["given_up"])
    reader.check_end()
    state_arrays = {name.removeprefix(_STATE): array for name, array in arrays.items() if name.startswith(_STATE)}
    state = SamplerState.from_parts(record["state"], state_arrays)
    return RecordedRollout(Rollout(groups, _read_report(record["report"]), given_up), state)


def _group_record(group: Group, arrays: _Arrays) -> dict[str, Any]:
    return {
        "index": group.index,
        "prompt": _prompt_record(group.prompt, arrays),
        "samples": [_sample_record(sample, arrays) for sample in group.samples],
    }


def _read_group(record: dict[str, Any], reader: _Reader) -> Group:
    prompt = _read_prompt(record["prompt"], reader)
    return Group(record["index"], prompt, tuple(_read_sample(sample, reader) for sample in record["samples"]))


def _prompt_record(prompt: Prompt, arrays: _Arrays) -> dict[str, Any]:
    return {
        "index": prompt.index,
        "epoch": prompt.epoch,
        "tokens": arrays.add("tokens", prompt.tokens),
        "label": prompt.label,
        "metadata": dict(prompt.metadata),
    }


def _read_prompt(record: dict[str, Any], reader: _Reader) -> Prompt:
    return Prompt(**(record | {"tokens": reader.take("tokens", record["tokens"])}))


def _sample_record(sample: Sample, arrays: _Arrays) -> dict[str, Any]:
    return {
        "index": sample.index,
        "group_index": sample.group_index,
        "tokens": arrays.add("tokens", sample.tokens),
        "response_len": sample.response_len,
        "reward": sample.reward,
        "rollout_logprobs": arrays.add("logprobs", sample.rollout_logprobs),
        "loss_mask": arrays.add("masks", sample.loss_mask),
        "finish_reason": sample.finish_reason,
        "weight_version": sample.weight_version,
        "rollout_id": sample.rollout_id,
    }


def _read_sample(record: dict[str, Any], reader: _Reader) -> Sample:
    arrays = {
        "tokens": reader.take("tokens", record["tokens"]),
        "rollout_logprobs": reader.take("logprobs", record["rollout_logprobs"]),
        "loss_mask": reader.take("masks", record["loss_mask"]),
    }
    return Sample(**(record | arrays))


def _read_report(record: dict[str, Any]) -> RolloutReport:
    nested = {
        "timing": Timing(**record["timing"]),
        "groups": GroupCounts(**record["groups"]),
        "kept": SampleStatistics(**record["kept"]),
    }
    return RolloutReport(**(record | nested))
