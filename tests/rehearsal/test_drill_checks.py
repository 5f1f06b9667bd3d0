"""What the drills ask of a run afterwards: that the questions find what they are to find."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1hpc.rehearsal.drills.checks import nothing_lost, trained_prompts
from r1hpc.rehearsal.drills.scene import DrillError
from r1hpc.rehearsal.drills.table import DRILLS
from r1hpc.rollout.rollout_file import rollout_path, save_rollout
from r1hpc.rundir import RunDir
from tests.rollout.test_recorded import odd_rollout


def _run(root: Path, lines: list[dict[str, Any]]) -> RunDir:
    """A run that says it is complete, with recorded rollouts of prompts 11 and 12, then 21 and 22, of epoch 2."""
    run = RunDir(root)
    run.rollouts.mkdir()
    for rollout_id, shift in enumerate((0, 10)):
        recorded = odd_rollout()
        moved = [
            replace(group, prompt=replace(group.prompt, index=group.prompt.index + shift))
            for group in recorded.rollout.groups
        ]
        rollout = replace(recorded.rollout, groups=moved)
        save_rollout(rollout_path(run.rollouts, rollout_id), replace(recorded, rollout=rollout))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run.done.touch()
    return run


def _line(iteration: int, step: int) -> dict[str, Any]:
    return {"iteration": iteration, "train/optimizer_step": step}


def test_a_whole_run_passes(tmp_path: Path) -> None:
    run = _run(tmp_path, [_line(0, 2), _line(1, 4)])
    assert trained_prompts(run.rollouts) == [(2, 11), (2, 12), (2, 21), (2, 22)]
    assert nothing_lost(run, 2) == "iterations 0 to 1 once each, 4 optimizer steps, 4 prompts, none twice"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([_line(0, 2)], r"iterations \[0\], not 0 to 1"),
        ([_line(0, 2), _line(1, 4), _line(1, 4)], r"iterations \[0, 1, 1\]"),
        ([_line(1, 2), _line(0, 4)], r"iterations \[1, 0\]"),
        ([_line(0, 2), _line(1, 2)], r"optimizer steps \[2, 2\]"),
        ([_line(0, 2), _line(1, 6)], r"optimizer steps \[2, 6\]"),
        ([_line(0, 0), _line(1, 0)], r"optimizer steps \[0, 0\]"),
    ],
)
def test_what_is_missing_doubled_or_out_of_order_is_found(
    lines: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DrillError, match=message):
        nothing_lost(_run(tmp_path, lines), 2)


def test_a_prompt_that_was_trained_on_twice_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path, [_line(0, 2), _line(1, 4)])
    save_rollout(rollout_path(run.rollouts, 1), odd_rollout())
    with pytest.raises(DrillError, match=r"trained on twice: \[\(2, 11\), \(2, 12\)\]"):
        nothing_lost(run, 2)


def test_a_run_that_is_not_complete_is_none(tmp_path: Path) -> None:
    run = _run(tmp_path, [_line(0, 2), _line(1, 4)])
    run.done.unlink()
    with pytest.raises(DrillError, match="the run is not complete"):
        nothing_lost(run, 2)


def test_there_is_a_drill_for_each_way_to_break_a_run() -> None:
    wanted = "preempt walltime scancel nodefail headkill enginekill halfcheckpoint finish-in-grace noprogress"
    assert {*wanted.split(), "array-element"} <= set(DRILLS)
    assert all(drill.stages and drill.proves for drill in DRILLS.values())
