"""The picture of a run: what goes into it, and that it is one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from r1hpc.metrics.__main__ import main
from r1hpc.metrics.curves import accuracy_curves, attempt_starts
from r1hpc.metrics.history import publish_lines
from r1hpc.rundir import RunDir
from tests.metrics.reports import record


def _lines(count: int) -> list[dict[str, object]]:
    """Three attempts; evaluated every other iteration, and after the last."""
    lines = []
    for number in range(count):
        line = record(number, attempt=f"41-r{number * 3 // count}", reward=math.sin(number)).to_json()
        if number % 2 == 0:
            line |= {"eval/heldout/pass@1": number / 10, "eval/heldout/weight_version": number}
        lines.append(line)
    lines[-1] |= {"final_eval/heldout/pass@1": 0.9, "final_eval/heldout/weight_version": count}
    return lines


def test_accuracy_is_drawn_over_the_iterations_that_the_weights_were_trained_for() -> None:
    (curve,) = accuracy_curves(_lines(6))
    assert (curve.label, curve.points) == ("heldout", ((0, 0.0), (2, 0.2), (4, 0.4), (6, 0.9)))


def test_attempts_are_marked_where_they_begin() -> None:
    assert attempt_starts(_lines(6)) == [2, 4]
    assert attempt_starts(_lines(6)[:2]) == []


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path)
    publish_lines(run.metrics, _lines(12))
    run.run.write_text(json.dumps({"run_id": "tiny-aaaaaa"}), encoding="utf-8")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{run.curves}\n"
    with Image.open(run.curves) as picture:
        assert (picture.format, picture.size) == ("PNG", (1200, 1080))
        colors = picture.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert (31, 78, 121) in {color for _, color in colors}, "no curve in the first colour"


@pytest.mark.parametrize(
    "change",
    [
        {"loss/kl": -0.5, "loss/mismatch_abs": 0.0},
        {"loss/kl": 0.0, "loss/mismatch_max": 1e-30},
        {"rollout/reward": None, "rollout/truncated": None},
        {"eval/heldout/pass@1": None},
    ],
)
def test_what_is_odd_is_drawn_too(tmp_path: Path, change: dict[str, object]) -> None:
    run = RunDir(tmp_path)
    publish_lines(run.metrics, [line | change for line in _lines(1)])
    assert main([str(tmp_path), "--output", str(tmp_path / "one.png")]) == 0
    with Image.open(tmp_path / "one.png") as picture:
        picture.verify()


def test_without_an_iteration_there_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has no iteration yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish_lines(RunDir(tmp_path).metrics, _lines(2))
    missing = tmp_path / "none"
    assert main([str(tmp_path), "--output", str(missing / "x.png")]) == 1
    told = f"error: {missing / 'x.png'}: there is no directory {missing}; make it, or name another --output\n"
    assert capsys.readouterr().err == told
