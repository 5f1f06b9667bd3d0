"""A commit of real ranks: what they saved, published with the sampler's state, is found, verified and gone on from."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from r1hpc.checkpoint.__main__ import main
from r1hpc.checkpoint.commit import Commits
from r1hpc.config.training import CkptConfig
from r1hpc.model.parallel import Layout
from r1hpc.rollout.state import SamplerState
from r1hpc.train.checkpoint.load import load_trainer
from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
from r1hpc.train.checkpoint.start import where_to_start
from tests.train.checkpointed import Trainer, World, quiet

STATE = SamplerState({"epoch": 0, "taken": 320}, 320, ())


def test_what_ranks_save_is_committed_and_gone_on_from(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    commits = Commits(root, keep=1)
    directory = commits.begin(7)

    def save(trainer: Trainer) -> SavedCheckpoint:
        trainer.fill()
        return trainer.begin(directory, 7).finish()

    saved, _ = World(2, Layout(tp=2, ep=2)).run(tmp_path, save)
    made = commits.finish(7, saved, STATE.save, {"run_id": "r1"})
    assert sorted(os.listdir(root)) == [".owner.json", "iter_0000007"]

    start = where_to_start(CkptConfig(hf_checkpoint="/models/hf", ref_load="/models/ref"), root)
    assert (start.directory, start.rollout, start.resumes) == (made.directory, 8, True)
    assert SamplerState.load(start.directory) == STATE

    def load(trainer: Trainer) -> list[str]:
        load_trainer(start.directory, trainer.held, trainer.optimizer, 1, quiet)
        return trainer.wrong()

    assert World().run(tmp_path, load) == [[]]
    assert main(["commits", "verify", str(root), "--workers", "1"]) == 0


def test_a_save_that_ranks_do_not_live_through_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    directory = Commits(root, keep=1).begin(7)

    def die(trainer: Trainer) -> None:
        trainer.fill()
        pending = trainer.begin(directory, 7)
        while not pending.written:
            time.sleep(0.01)
        os._exit(0)

    with pytest.raises(AssertionError, match="rank 0: ended without an answer"):
        World().run(tmp_path, die)
    assert len(os.listdir(root)) == 2
    Commits(root, keep=1).sweep()
    assert os.listdir(root) == [".owner.json"]
