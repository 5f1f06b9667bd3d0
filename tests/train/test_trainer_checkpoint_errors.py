"""What cannot be saved or loaded is said on every rank, in the same words, and nothing is left half done."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1hpc.errors import R1hpcError
from r1hpc.model.parallel import Layout
from r1hpc.train.checkpoint.load import load_trainer
from r1hpc.train.checkpoint.plan import TensorForm, plan_save
from r1hpc.train.checkpoint.save import begin_save
from r1hpc.train.checkpoint.trainer_state import TrainerState
from tests.checkpoint.stored import edit_metadata
from tests.train.checkpointed import Trainer, World, quiet, rank

WORLD = World(2, Layout(tp=2, ep=2))
NORM = "decoder.layers.2.pre_mlp_layernorm.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("saved")
    WORLD.run(base, lambda trainer: trainer.save(base / "iter_0000007"))
    return base / "iter_0000007"


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """To be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "iter_0000007"))


def errors(work: Callable[[Trainer], object], scratch: Path, world: World = WORLD) -> list[str]:
    """What every rank raises."""

    def on_rank(trainer: Trainer) -> str:
        try:
            work(trainer)
        except R1hpcError as error:
            return str(error)
        return "nothing was raised"

    return world.run(scratch, on_rank)


def load_error(directory: Path, scratch: Path, world: World = WORLD) -> str:
    """What every rank says of the checkpoint, having changed nothing."""

    def work(trainer: Trainer) -> None:
        try:
            load_trainer(directory, trainer.held, trainer.optimizer, 1, quiet)
        finally:
            assert trainer.untouched()
            assert trainer.optimizer.num_steps == 0

    first, *others = errors(work, scratch, world)
    assert all(other == first for other in others)
    return first


def test_a_file_system_that_refuses_one_rank_stops_all_and_leaves_nothing(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> None:
        trainer.fill()
        if rank() == 1:
            # As a full disk does, in the middle of a file.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        pending = trainer.begin(tmp_path / "checkpoints/iter_0000007")
        pending.finish()

    first, second = errors(work, tmp_path)
    assert first == second
    assert "__1_0.distcp: rank 1 cannot write its part of iter_0000007: File too large" in first
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_directory_that_cannot_be_made_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first, second = errors(lambda trainer: trainer.save(tmp_path / "file/iter_0000007"), tmp_path)
    assert first == second
    assert f"{tmp_path}/file/iter_0000007: no checkpoint can be written there (File exists" in first


def test_a_checkpoint_is_not_written_over(copy: Path, tmp_path: Path) -> None:
    before = sorted(file.name for file in copy.iterdir())
    first, second = errors(lambda trainer: trainer.save(copy), tmp_path)
    assert first == second
    assert "is there already and not empty" in first
    assert sorted(file.name for file in copy.iterdir()) == before


def test_too_little_room_is_said_with_both_numbers(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> None:
        trainer.fill()
        plan = replace(trainer.plan, tensors={"huge": TensorForm(torch.float32, (1 << 50,))})
        begin_save(tmp_path / "saved/a", plan, trainer.host.tensors("actor"), TrainerState(0, 0, {}, ""), quiet)

    first, second = errors(work, tmp_path)
    assert first == second
    assert "the checkpoint of iteration 0 takes 4,504 TB more" in first
    assert list((tmp_path / "saved").iterdir()) == []


def test_shards_that_leave_a_part_out_are_refused_before_a_save(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> None:
        shards = [shard for shard in trainer.optimizer.shards() if not shard.name.endswith("final_layernorm.weight")]
        cut = [
            replace(shard, end=shard.end - 3) if shard.name.endswith("linear_proj.weight") else shard
            for shard in shards
        ]
        plan_save(trainer.held, cut)

    (only,) = errors(work, tmp_path, World())
    assert "decoder.layers.0.self_attention.linear_proj.weight" in only
    assert "3 of" in only


@pytest.mark.parametrize("name", [".metadata", "trainer.json", "random_states.pt", "__1_0.distcp"])
def test_a_missing_file_is_named(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in load_error(copy, tmp_path)


def test_a_cut_file_is_named_before_anything_is_read(copy: Path, tmp_path: Path) -> None:
    file = copy / "__1_0.distcp"
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    assert f"{file}: has " in load_error(copy, tmp_path)


def test_a_moment_that_is_missing_is_named(copy: Path, tmp_path: Path) -> None:
    key = f"optimizer.state.exp_avg_sq.{NORM}"

    def drop(metadata: object) -> None:
        del metadata.state_dict_metadata[key]  # type: ignore[attr-defined]
        storage = metadata.storage_data  # type: ignore[attr-defined]
        for index in [index for index in storage if index.fqn == key]:
            del storage[index]

    edit_metadata(copy, drop)
    assert f"lacks 1 tensor ({key})" in load_error(copy, tmp_path)


def test_another_dtype_is_not_resumed(copy: Path, tmp_path: Path) -> None:
    message = load_error(copy, tmp_path, World(2, Layout(tp=2), torch.bfloat16))
    assert "bfloat16 in the model, float32 in the checkpoint" in message


def test_weights_that_nobody_asks_for_are_refused(copy: Path, tmp_path: Path) -> None:
    def rename(metadata: object) -> None:
        entries = metadata.state_dict_metadata  # type: ignore[attr-defined]
        storage = metadata.storage_data  # type: ignore[attr-defined]
        (index,) = [index for index in storage if index.fqn == NORM]
        other = NORM.replace("layers.2", "layers.9")
        entries[other] = entries[NORM]
        storage[replace(index, fqn=other)] = replace(storage[index])

    edit_metadata(copy, rename)
    assert "no rank of the model asks for 1 tensor (decoder.layers.9" in load_error(copy, tmp_path)


def test_prediction_layers_are_left_unread(copy: Path, tmp_path: Path) -> None:
    def add(metadata: object) -> None:
        entries = metadata.state_dict_metadata  # type: ignore[attr-defined]
        storage = metadata.storage_data  # type: ignore[attr-defined]
        (index,) = [index for index in storage if index.fqn == NORM]
        entries["mtp.layers.0.enorm.weight"] = entries[NORM]
        storage[replace(index, fqn="mtp.layers.0.enorm.weight")] = replace(storage[index])

    edit_metadata(copy, add)

    def work(trainer: Trainer) -> list[str]:
        load_trainer(copy, trainer.held, trainer.optimizer, 1, quiet)
        return trainer.wrong()

    assert WORLD.run(tmp_path, work) == [[], []]


def test_a_broken_archive_is_named_on_every_rank(copy: Path, tmp_path: Path) -> None:
    data = bytearray((copy / "__0_0.distcp").read_bytes())
    data[:64] = bytes(64)
    (copy / "__0_0.distcp").write_bytes(data)
    first, second = errors(lambda trainer: load_trainer(copy, trainer.held, trainer.optimizer, 1, quiet), tmp_path)
    assert first == second
    assert "__0_0.distcp: " in first
    assert "the file is damaged" in first


def test_a_state_of_another_format_is_refused(copy: Path, tmp_path: Path) -> None:
    state = json.loads((copy / "trainer.json").read_text())
    (copy / "trainer.json").write_text(json.dumps(state | {"format": 2}))
    assert "has format 2; this version reads format 1" in load_error(copy, tmp_path)


def test_a_state_that_lacks_its_steps_is_refused(copy: Path, tmp_path: Path) -> None:
    state = json.loads((copy / "trainer.json").read_text())
    del state["optimizer_steps"]
    (copy / "trainer.json").write_text(json.dumps(state))
    assert "optimizer_steps is None; it must be of type int" in load_error(copy, tmp_path)
