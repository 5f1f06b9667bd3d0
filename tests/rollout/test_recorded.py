"""Rollouts that are kept come back equal to the last bit, and stand in for engines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest

from r1hpc.publish import publishing
from r1hpc.rollout.group import Group, SamplerError
from r1hpc.rollout.recorded import Recorder, Replay
from r1hpc.rollout.rollout_file import RecordedRollout, load_rollout, rollout_path, save_rollout
from r1hpc.rollout.sampler import Rollout
from r1hpc.rollout.state import SamplerState
from r1hpc.types import Prompt, Sample
from tests.rollout.scripted import Rig, Script, make_rig, rollout_config

FIELDS: dict[str, Any] = {"rollout_batch_size": 4, "over_sampling_batch_size": 7, "n_samples_per_prompt": 3}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Paths at which two values differ in type, dtype or any bit."""
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if is_dataclass(one):
        pairs = [(field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
    elif isinstance(one, dict) and one.keys() == other.keys():
        pairs = [(key, one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple) and len(one) == len(other):
        pairs = [(str(place), *pair) for place, pair in enumerate(zip(one, other, strict=True))]
    elif isinstance(one, numpy.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [f"{where}: {one!r} and {other!r}"]
    else:
        return [] if repr(one) == repr(other) else [f"{where}: {one!r} and {other!r}"]
    return [found for name, a, b in pairs for found in differences(a, b, f"{where}.{name}")]


def make(recycle: str = "tokens", **more: Any) -> Rig:
    return make_rig(rollout_config(**(FIELDS | {"recycle": recycle} | more)), Script(7, 9), num_prompts=40)


async def recorded(rig: Rig, directory: Path, last: int, first: int = 0) -> list[RecordedRollout]:
    recorder = Recorder(rig.sampler, directory)
    kept = []
    for rollout_id in range(first, last):
        rig.engines.version = rollout_id
        rollout = await recorder.rollout(rollout_id, rollout_id)
        kept.append(RecordedRollout(rollout, recorder.state()))
    return kept


def odd_rollout() -> RecordedRollout:
    """All that samples may be, and a live sampler seldom makes."""
    tokens = numpy.arange(5, dtype=numpy.int32)
    bare = Sample(0, 3, tokens, 2, -0.1)
    full = Sample(
        index=1,
        group_index=3,
        tokens=tokens[:3],
        response_len=1,
        reward=0.1 + 0.2,
        rollout_logprobs=numpy.asarray([numpy.nextafter(numpy.float32(-1), numpy.float32(0))], dtype=numpy.float32),
        loss_mask=numpy.asarray([False]),
        finish_reason="length",
        weight_version=8,
        rollout_id=7,
    )
    prompt = Prompt(11, 2, tokens[:2], "42", {"rm_type": "math", "nested": {"a": [1, 2.5, None]}})
    nameless = Prompt(12, 2, tokens[:0])
    report = asyncio.run(make().sampler.rollout(0, 0)).report
    rollout = Rollout([Group(3, prompt, (bare, full)), Group(9, nameless, ())], report, (prompt, nameless))
    return RecordedRollout(rollout, SamplerState({"epoch": 2}, 10, ()))


def test_every_field_comes_back_equal_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "rollout_0000007.npz"
    one = odd_rollout()
    save_rollout(path, one)
    assert differences(one, load_rollout(path)) == []
    assert os.listdir(tmp_path) == ["rollout_0000007.npz"]


def test_a_run_is_replayed_as_it_was_with_the_states_of_its_sampler(tmp_path: Path) -> None:
    live = asyncio.run(recorded(make(), tmp_path, 5))
    # Something to compare: recycled tokens, prompts that wait, tokens that are masked.
    assert any(queued.begun for one in live for queued in one.state.queue)
    replay = Replay(tmp_path, rollout_config(**FIELDS))
    for rollout_id, one in enumerate(live):
        rollout = asyncio.run(replay.rollout(rollout_id, rollout_id))
        assert differences(one, RecordedRollout(rollout, replay.state())) == [], f"rollout {rollout_id}"
        assert [sample.index for sample in rollout.samples] == list(range(12))


def test_a_live_run_goes_on_from_the_state_of_a_replayed_one(tmp_path: Path) -> None:
    whole = asyncio.run(recorded(make("prompts"), tmp_path / "whole", 6))
    replay = Replay(tmp_path / "whole", rollout_config(**FIELDS))
    asyncio.run(replay.rollout(2, 2))
    rig = make("prompts")
    Recorder(rig.sampler, tmp_path).load_state(replay.state())
    later = asyncio.run(recorded(rig, tmp_path / "later", 6, first=3))
    for one, other in zip(whole[3:], later, strict=True):
        assert differences(one.rollout.groups, other.rollout.groups) == []
        assert differences(one.state, other.state) == []


def test_the_state_of_a_commit_is_that_of_a_resumed_replay(tmp_path: Path) -> None:
    (one, *_) = asyncio.run(recorded(make(), tmp_path, 1))
    replay = Replay(tmp_path, rollout_config(**FIELDS))
    with pytest.raises(SamplerError, match="no rollout of it has been replayed yet"):
        replay.state()
    replay.load_state(one.state)
    assert replay.state() is one.state


def test_a_rollout_that_an_attempt_before_recorded_is_replaced(tmp_path: Path) -> None:
    asyncio.run(recorded(make(), tmp_path, 1))
    rig = make()
    rig.sampler.load_state(SamplerState({"taken": 20}, 50, ()))
    (again,) = asyncio.run(recorded(rig, tmp_path, 1))
    assert differences(again, load_rollout(rollout_path(tmp_path, 0))) == []
    assert again.rollout.groups[0].index >= 50


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rollout_batch_size": 5}, "it has 4 groups, and rollout.rollout_batch_size is 5; set that to 4"),
        (
            {"n_samples_per_prompt": 2},
            "it has groups of 3 samples, and rollout.n_samples_per_prompt is 2; set that to 3",
        ),
    ],
)
def test_rollouts_of_another_size_are_refused(fields: dict[str, int], message: str, tmp_path: Path) -> None:
    asyncio.run(recorded(make(), tmp_path, 1))
    replay = Replay(tmp_path, rollout_config(**(FIELDS | fields)))
    with pytest.raises(SamplerError) as refused:
        asyncio.run(replay.rollout(0, 0))
    assert f"rollout_0000000.npz: does not fit this configuration: {message}" in str(refused.value)


def test_a_rollout_that_was_not_recorded_is_named_with_what_there_is(tmp_path: Path) -> None:
    replay = Replay(tmp_path, rollout_config(**FIELDS))
    with pytest.raises(
        SamplerError, match=r"rollout_0000003.npz: is not there, and the directory has none; .*save_roll"
    ):
        asyncio.run(replay.rollout(3, 3))
    asyncio.run(recorded(make(), tmp_path, 3))
    with pytest.raises(SamplerError, match=r"has rollout_0000000.npz to rollout_0000002.npz, 3 files"):
        asyncio.run(replay.rollout(3, 3))


def test_a_file_under_another_name_is_refused(tmp_path: Path) -> None:
    asyncio.run(recorded(make(), tmp_path, 1))
    rollout_path(tmp_path, 0).rename(rollout_path(tmp_path, 3))
    with pytest.raises(SamplerError, match="holds rollout 0; it was renamed or copied"):
        asyncio.run(Replay(tmp_path, rollout_config(**FIELDS)).rollout(3, 3))


def test_a_damaged_file_is_named_wherever_it_is_cut_or_changed(tmp_path: Path) -> None:
    asyncio.run(recorded(make(), tmp_path, 1))
    path = rollout_path(tmp_path, 0)
    data = path.read_bytes()
    refused = 0
    places = [*range(0, len(data), len(data) // 60), len(data) - 1]
    for place in places:
        path.write_bytes(data[:place])
        with pytest.raises(SamplerError, match=r"rollout_0000000.npz: "):
            load_rollout(path)
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        try:
            changed = load_rollout(path)
        except SamplerError:
            refused += 1
        else:
            # Some bytes of a zip file mean nothing: times, for instance. What is read is never another rollout.
            path.write_bytes(data)
            assert differences(changed, load_rollout(path)) == [], f"byte {place}"
    assert refused > len(places) // 2


def test_a_disk_that_is_full_is_said_before_anybody_trains(tmp_path: Path) -> None:
    (tmp_path / "rollouts").touch()
    with pytest.raises(SamplerError, match=r"rollout 0 cannot be saved .*debug.save_rollouts: false"):
        asyncio.run(recorded(make(), tmp_path / "rollouts", 1))


def test_killed_while_it_records_the_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    old, new = asyncio.run(recorded(make(), tmp_path / "all", 2))
    path = tmp_path / "rollout_0000000.npz"
    save_rollout(path, old)
    statuses = []
    for die_at in range(20):
        child = os.fork()
        if child == 0:
            _die_at_change(die_at)
            save_rollout(path, new)
            os._exit(0)
        statuses.append(os.waitpid(child, 0)[1])
        found = load_rollout(path)
        assert differences(found, old) == [] or differences(found, new) == []
        if statuses[-1] == 0:
            break
    assert statuses[-1] == 0
    assert len(statuses) > 3
    assert differences(load_rollout(path), new) == []


def _die_at_change(number: int) -> None:
    left = number

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove") or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(note)


def test_what_a_killed_recording_left_goes_with_the_next(tmp_path: Path) -> None:
    path = rollout_path(tmp_path, 0)
    child = os.fork()
    if child == 0:
        with publishing(path) as stream:
            stream.write(b"half of a rollout")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 1
    asyncio.run(recorded(make(), tmp_path, 1))
    assert os.listdir(tmp_path) == ["rollout_0000000.npz"]
