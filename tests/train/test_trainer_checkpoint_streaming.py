"""A save goes on in a thread, from where the values lie: nothing is copied, nothing waits for it, it can be ended."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed as dist

from r1hpc.checkpoint.boxes import whole
from r1hpc.checkpoint.torch_dist import open_torch_dist
from r1hpc.errors import CheckpointProblems
from r1hpc.model.parallel import Layout
from r1hpc.train.checkpoint.box_files import SLICE_BYTES, BoxFiles
from r1hpc.train.checkpoint.load import load_trainer
from r1hpc.train.checkpoint.plan import Item
from r1hpc.train.checkpoint.save import begin_save
from r1hpc.train.checkpoint.trainer_state import TrainerState
from r1hpc.train.model_memory import ModelMemory
from tests.forked_ranks import fork_ranks
from tests.train.checkpointed import Trainer, World, quiet, shape

WORLD = World(2, Layout(tp=2, ep=2))
MB = 1 << 20
LARGE = 96 * MB
"""Bytes of one tensor, far more than a slice."""


def test_it_is_saved_while_the_model_sleeps_and_loaded_again(tmp_path: Path) -> None:
    directory = tmp_path / "iter_0000007"

    def work(trainer: Trainer) -> list[str]:
        trainer.fill()
        plan = trainer.plan
        memory = ModelMemory(trainer.ddp, trainer.host)
        memory.sleep()
        assert all(not parameter.untyped_storage().size() for parameter in trainer.model.parameters())
        weights = trainer.host.tensors("actor")
        begin_save(directory, plan, weights, TrainerState(7, 37, {}, ""), quiet).finish()
        memory.wake()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.fill_(torch.nan)
        load_trainer(directory, trainer.held, trainer.optimizer, 1, quiet)
        return trainer.wrong()

    assert WORLD.run(tmp_path, work) == [[], []]


def test_two_saves_in_a_row_hold_what_was_there_at_each(tmp_path: Path) -> None:
    later = World(2, WORLD.layout, offset=3.0)

    def work(trainer: Trainer) -> None:
        trainer.fill()
        trainer.begin(tmp_path / "iter_0000000", 0).finish()
        trainer.world = later
        trainer.fill()
        trainer.begin(tmp_path / "iter_0000001", 1).finish()

    WORLD.run(tmp_path, work)
    for world, iteration in ((WORLD, 0), (later, 1)):

        def check(trainer: Trainer, iteration: int = iteration) -> tuple[list[str], int]:
            loaded = load_trainer(tmp_path / f"iter_000000{iteration}", trainer.held, trainer.optimizer, 1, quiet)
            return trainer.wrong(), loaded.state.iteration

        assert world.run(tmp_path, check) == [([], iteration)] * 2


def test_equal_states_are_saved_as_equal_bytes(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> None:
        trainer.save(tmp_path / "first")
        trainer.save(tmp_path / "second")

    WORLD.run(tmp_path, work)
    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert len(files) == 9
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_save_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> None:
        trainer.fill()
        trainer.begin(tmp_path / "checkpoints/iter_0000007").abandon()
        assert not any(thread.name.startswith("save of") for thread in threading.enumerate())

    WORLD.run(tmp_path, work)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_writer_that_is_stuck_is_an_error_on_every_rank_and_leaves_nothing(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> str:
        trainer.fill()
        state = TrainerState(7, 37, {}, "")

        def stuck(_: str) -> None:
            time.sleep(2)

        say = stuck if dist.get_rank() == 0 else quiet
        saving = begin_save(tmp_path / "checkpoints/a", trainer.plan, trainer.host.tensors("actor"), state, say)
        with pytest.raises(CheckpointProblems) as refused:
            saving.finish(deadline_s=0.5 if dist.get_rank() == 0 else 30)
        return str(refused.value)

    said = WORLD.run(tmp_path, work)
    assert len(said) > 1
    assert len(set(said)) == 1
    assert "rank 0 has not written its part of a after 0 s of waiting" in said[0]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_copy_on_several_ranks_is_written_by_one(tmp_path: Path) -> None:
    world = World(4, Layout(tp=2, ep=2))
    counts = world.run(tmp_path, lambda trainer: [owned.run.key for owned in trainer.plan.owned])
    bias = [keys.count("decoder.layers.1.mlp.router.expert_bias") for keys in counts]
    assert sorted(bias) == [0, 0, 0, 1]
    # Norms are the same on both tensor ranks, and shared by the data-parallel ranks.
    norm = [keys.count("decoder.layers.1.input_layernorm.weight") for keys in counts]
    assert 1 <= sum(norm) <= 2


def test_the_experts_of_a_rank_are_one_box(tmp_path: Path) -> None:
    """One archive for each matrix of R1's 14,848 experts would make a list that ranks take a minute to read."""

    def work(trainer: Trainer) -> list[tuple[int, ...]]:
        held = trainer.held.parameters
        fc1 = held["decoder.layers.1.mlp.experts.linear_fc1_weight"]
        return [piece.box.offset + piece.box.sizes for piece in fc1.pieces]

    width, hidden = 2 * shape().moe_intermediate_size, shape().hidden_size
    expected = [[(first, 0, 0, 2, width, hidden)] for first in (0, 2)]
    assert WORLD.run(tmp_path, work) == expected


def test_progress_says_bytes_rate_and_time(tmp_path: Path) -> None:
    lines: list[str] = []

    def work(trainer: Trainer) -> list[str]:
        trainer.fill()
        state = TrainerState(7, 37, {}, "")
        begin_save(tmp_path / "a", trainer.plan, trainer.host.tensors("actor"), state, lines.append).finish()
        return lines

    ((line,),) = World().run(tmp_path, work)
    assert line.startswith("saving iteration 7, rank 0: ")
    assert line.endswith("/s")


def test_memory_does_not_grow_with_a_tensor(tmp_path: Path) -> None:
    flat = torch.ones(LARGE // 4)
    items = [Item("weight", whole((LARGE // 4096, 1024)), flat)] * 2

    def work(_: int) -> int:
        files = BoxFiles(tmp_path, 0)
        list(files.write(items[:1]))  # what the first write brings in is no part of it
        _reset_peak()
        before = _peak_bytes()
        list(BoxFiles(tmp_path, 1).write(items))
        return _peak_bytes() - before

    (grown,) = fork_ranks(work, 1, 60.0)
    assert grown < SLICE_BYTES < LARGE / 10
    assert (tmp_path / "__1_0.distcp").stat().st_size > 2 * LARGE


def test_the_rank_goes_on_while_it_is_written(tmp_path: Path) -> None:
    """Hashing and writing release the interpreter lock: the main thread is never kept from it for long."""
    flat = torch.ones(LARGE // 4)

    def work(_: int) -> tuple[float, int]:
        items = [Item("weight", whole((LARGE // 4,)), flat)] * 3
        writer = threading.Thread(target=lambda: list(BoxFiles(tmp_path, 0).write(items)))
        writer.start()
        pauses, last = [], time.monotonic()
        while writer.is_alive():
            time.sleep(0.0005)
            now = time.monotonic()
            pauses.append(now - last)
            last = now
        return float(numpy.median(pauses)), len(pauses)

    ((median, count),) = fork_ranks(work, 1, 60.0)
    assert count > 50
    assert median < 0.02


def test_files_lie_in_the_order_weights_then_states(tmp_path: Path) -> None:
    World().run(tmp_path, lambda trainer: trainer.save(tmp_path / "saved"))
    places = [
        (chunk.extent.file, chunk.extent.offset, key)
        for key, tensor in open_torch_dist(tmp_path / "saved").tensors.items()
        for chunk in tensor.chunks
    ]
    kinds = [key.split(".")[2] if key.startswith("optimizer.") else "weight" for _, _, key in sorted(places)]
    assert list(dict.fromkeys(kinds)) == ["weight", "fp32_param", "exp_avg", "exp_avg_sq"]
    assert kinds == sorted(kinds, key=["weight", "fp32_param", "exp_avg", "exp_avg_sq"].index)


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
