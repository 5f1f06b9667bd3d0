"""Drills several at a time: one line for each, and what a comparison of two runs finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1hpc.rehearsal.drills.ci import PARTS, plays
from r1hpc.rehearsal.drills.same import same
from r1hpc.rehearsal.drills.scene import DrillError
from r1hpc.rehearsal.drills.side_by_side import Play, play_side_by_side
from r1hpc.rehearsal.drills.table import DRILLS
from r1hpc.rundir import RunDir


def test_each_drill_says_one_line_and_a_failing_one_where_its_logs_are(tmp_path: Path) -> None:
    lines: list[str] = []
    # --list plays nothing, so no cluster is needed; the other is no drill at all.
    assert play_side_by_side([Play("preempt", ["--list"]), Play("nonsense", [])], tmp_path, 2, lines.append) == 1
    assert len(lines) == 3
    (failed,) = [line for line in lines if line.startswith("drill nonsense: exit code 1: rehearsal: no drill nonsense")]
    assert str(tmp_path / "nonsense.log") in failed
    assert lines[-1].startswith("1 of 2 drills passed")


def test_ci_plays_every_drill_with_engines_for_two_alone() -> None:
    assert {part.name for part in PARTS} == set(DRILLS) - {"preempt3", "preempt3-replayed"}
    live = [play.name for play in plays([], []) if "--replay" not in play.arguments]
    assert live == ["preempt", "enginekill"]


def _run(root: Path, loss: float = 0.25, weights: bytes = b"weights") -> RunDir:
    commit = root / "checkpoints" / "iter_0000000"
    commit.mkdir(parents=True)
    (commit / "__0_0.distcp").write_bytes(weights)
    line = {"iteration": 0, "train/optimizer_step": 2, "loss/loss": loss, "seconds/update": float(len(root.name))}
    run = RunDir(root)
    run.metrics.write_text(json.dumps(line) + "\n", encoding="utf-8")
    return run


def test_runs_that_trained_alike_are_the_same_whatever_time_it_took(tmp_path: Path) -> None:
    story = same(_run(tmp_path / "one"), _run(tmp_path / "another"), 1)
    assert story == "losses of 1 iterations and 1 files of the last commit are bitwise the same"


def test_a_loss_that_differs_in_its_last_bit_is_found(tmp_path: Path) -> None:
    with pytest.raises(DrillError, match=r"iteration 0: loss/loss is 0\.25 in one and 0\.25000000000000006 in two"):
        same(_run(tmp_path / "one"), _run(tmp_path / "two", loss=0.25000000000000006), 1)


def test_weights_that_differ_are_found(tmp_path: Path) -> None:
    with pytest.raises(DrillError, match=r"the commits differ in __0_0\.distcp"):
        same(_run(tmp_path / "one"), _run(tmp_path / "two", weights=b"weighty"), 1)
