"""Random states: each rank its own again, or drawn anew by a rule where the ranks are others."""

from __future__ import annotations

import random
from pathlib import Path

import numpy
import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_expert_parallel_rng_tracker_name

from r1hpc.model.parallel import Layout
from r1hpc.train.checkpoint.load import load_trainer
from r1hpc.train.checkpoint.random_states import seed_random_states
from tests.train.checkpointed import Trainer, World, quiet, rank

WORLD = World(4, Layout(tp=2, ep=2))
Draws = dict[str, float]


def draws() -> Draws:
    """The next number of every generator of this rank."""
    found = {
        "python": random.random(),
        "numpy": float(numpy.random.random()),
        "gauss": float(numpy.random.standard_normal()),
        "torch": float(torch.rand(1)),
    }
    tracker = get_cuda_rng_tracker()
    for name in ("model-parallel-rng", "data-parallel-rng", get_expert_parallel_rng_tracker_name()):
        with tracker.fork(name):
            found[name] = float(torch.rand(1))
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Draws]]:
    """A checkpoint, and what every rank drew after it."""
    base = tmp_path_factory.mktemp("random")

    def work(trainer: Trainer) -> Draws:
        for generator in (random.seed, numpy.random.seed, torch.manual_seed):
            generator(100 + rank())
        for _ in range(1 + rank()):
            draws()  # every rank has gone another way
        trainer.fill()
        pending = trainer.begin(base / "iter_0000007")
        after = draws()
        pending.finish()
        return after

    return base / "iter_0000007", WORLD.run(base, work)


def resumed(directory: Path, world: World, scratch: Path) -> list[Draws]:
    def work(trainer: Trainer) -> Draws:
        load_trainer(directory, trainer.held, trainer.optimizer, 1234, quiet)
        return draws()

    return world.run(scratch, work)


def test_every_rank_goes_on_with_its_own_states(saved: tuple[Path, list[Draws]], tmp_path: Path) -> None:
    directory, expected = saved
    assert resumed(directory, WORLD, tmp_path) == expected
    # Megatron's own checkpoints would give all of these the state of one rank.
    assert len({drawn["expert-parallel-rng"] for drawn in expected}) == 4
    assert len({drawn["python"] for drawn in expected}) == 4


def test_another_layout_draws_anew_the_same_each_time(saved: tuple[Path, list[Draws]], tmp_path: Path) -> None:
    directory, before = saved
    other = World(2, Layout(ep=2))
    first = resumed(directory, other, tmp_path)
    assert first == resumed(directory, other, tmp_path)
    assert first[0]["python"] == first[1]["python"] not in [drawn["python"] for drawn in before]
    assert first[0]["expert-parallel-rng"] != first[1]["expert-parallel-rng"]


def test_a_later_iteration_draws_other_numbers(tmp_path: Path) -> None:
    def work(trainer: Trainer) -> list[Draws]:
        found = []
        for seed, iteration in ((1, 0), (1, 1), (2, 0), (1, 0)):
            seed_random_states(seed, iteration, parallel_state.get_pipeline_model_parallel_rank())
            found.append(draws())
        return found

    (found,) = World().run(tmp_path, work)
    assert found[0] == found[3]
    for name in found[0]:
        assert len({drawn[name] for drawn in found}) == 3, name
