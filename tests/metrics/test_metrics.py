"""What an attempt records: the file, TensorBoard as its own reader sees it, the line for people."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from r1hpc.metrics.build import eval_numbers, iteration_record
from r1hpc.metrics.console import console_line
from r1hpc.metrics.history import read_history
from r1hpc.metrics.metrics import Metrics
from r1hpc.metrics.progress import read_progress, say_progress
from r1hpc.metrics.remaining import remaining_s
from r1hpc.rundir import AttemptDir, RunDir
from tests.metrics.reports import circumstances, eval_result, record, rollout_report


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def _scalars(run: RunDir, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(run.tensorboard))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_three_attempts_leave_each_iteration_once_in_the_file_and_in_tensorboard(run: RunDir) -> None:
    said: list[str] = []
    first = Metrics(run, 0, 5, said.append)
    for iteration, reward in enumerate((0.0, 0.25, 0.5)):
        first.record(record(iteration, reward=reward))
    # No close: it was killed. The commit of iteration 0 was the last that was complete.
    second = Metrics(run, 1, 5, said.append)
    second.record(record(1, attempt="41-r1", reward=0.75))
    third = Metrics(run, 1, 5, said.append)
    third.record(record(1, attempt="41-r2", reward=1.0))
    third.record(record(2, attempt="41-r2", reward=0.125))
    third.close()
    expected = [(0, 0.0), (1, 1.0), (2, 0.125)]
    lines = read_history(run.metrics).lines
    assert [(line["iteration"], line["rollout/reward"]) for line in lines] == expected
    assert _scalars(run, "rollout/reward") == expected
    assert third.lines == lines
    assert said[-1] == (
        "iteration 2 of 5: reward 0.125 (0.250 of all); length 10, 0.0% truncated; 10 s; 20 s left; nothing committed"
        " yet"
    )


def test_an_iteration_is_recorded_in_its_turn(run: RunDir) -> None:
    metrics = Metrics(run, 0, 5)
    with pytest.raises(AssertionError, match="iteration 1 recorded, 0 was due"):
        metrics.record(record(1))
    metrics.close()


def test_lines_that_are_missing_before_the_first_are_told(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Metrics(run, 3, 5).close()
    assert "has 0 lines of the 3 iterations before" in caplog.text


def test_the_last_evaluation_joins_the_last_line_and_comes_a_step_later(run: RunDir) -> None:
    said: list[str] = []
    metrics = Metrics(run, 0, 1, said.append)
    metrics.record(iteration_record(circumstances(0), rollout=rollout_report(), evals=[eval_result(weight_version=0)]))
    metrics.add_final_evaluation(eval_numbers([eval_result(weight_version=1, accuracy=0.75)]))
    metrics.close()
    (line,) = read_history(run.metrics).lines
    assert (line["eval/heldout/pass@1"], line["final_eval/heldout/pass@1"]) == (0.625, 0.75)
    assert line["final_eval/heldout/weight_version"] == 1
    assert _scalars(run, "eval/heldout/pass@1") == [(0, 0.625), (1, 0.75)]
    assert said[-1] == "after iteration 0 of 1: eval of heldout 0.750"


def test_a_last_evaluation_after_a_resume_at_the_end_joins_the_last_line(run: RunDir) -> None:
    """The attempt that did the last iteration was killed while it evaluated."""
    Metrics(run, 0, 1).record(record(0))
    metrics = Metrics(run, 1, 1)
    metrics.add_final_evaluation(eval_numbers([eval_result(weight_version=1)]))
    metrics.close()
    (line,) = read_history(run.metrics).lines
    assert (line["rollout/reward"], line["final_eval/heldout/pass@1"]) == (0.5, 0.625)


def test_what_is_not_finite_is_seen_everywhere(run: RunDir) -> None:
    said: list[str] = []
    metrics = Metrics(run, 0, 2, said.append)
    metrics.record(replace(record(0), loss={"loss": math.nan, "kl": math.inf}))
    metrics.add_final_evaluation(eval_numbers([eval_result(accuracy=math.nan)]))
    metrics.close()
    assert math.isnan(_scalars(run, "loss/loss")[0][1])
    assert _scalars(run, "loss/kl") == [(0, math.inf)]
    assert "; kl inf; " in said[0]
    (line,) = read_history(run.metrics).lines
    assert line["loss/kl"] is None
    assert line["not_finite"] == {
        "loss/loss": "nan",
        "loss/kl": "inf",
        "final_eval/heldout/reward": "nan",
        "final_eval/heldout/pass@1": "nan",
    }


def test_a_run_goes_on_without_tensorboard(run: RunDir, caplog: pytest.LogCaptureFixture) -> None:
    run.tensorboard.write_text("a file is in the way", encoding="utf-8")
    metrics = Metrics(run, 0, 2)
    metrics.record(record(0))
    metrics.record(record(1))
    metrics.close()
    assert len(read_history(run.metrics).lines) == 2
    assert caplog.text.count("TensorBoard's files cannot be written") == 1


def test_the_line_for_people_has_all_that_was_measured() -> None:
    whole = iteration_record(circumstances(), rollout=rollout_report(), evals=[eval_result()]).to_json() | {
        "loss/kl": 0.00125,
        "loss/clip_fraction": 0.004,
        "loss/entropy": 0.5,
        "train/grad_norm": 0.412,
        "loss/mismatch_abs": 0.00002,
        "loss/mismatch_max": 0.0004,
        "tokens_per_s/train": 98000.0,
    }
    assert console_line(whole, 200, 196 * 20.0) == (
        "iteration 3 of 200: reward 0.500 (0.750 of all); length 75, 25.0% truncated; kl 1.25e-03, clipped 0.40%,"
        " entropy 0.500, grad norm 0.412; log-probs differ by 2.0e-05, at most 4.0e-04; eval of heldout 0.625;"
        " 250 tokens/s sampled, 98,000 tokens/s trained; 20 s (rollout 8.0 s, sync 2.0 s, eval 3.0 s); 65.3 min left;"
        " committed 1, saving 2"
    )


def test_time_left_is_told_by_the_last_ten_iterations() -> None:
    lines = [record(number, seconds=1000.0 if number < 5 else 10.0).to_json() for number in range(15)]
    assert remaining_s(lines, 20) == 50.0
    assert remaining_s(lines[:6], 20) == pytest.approx(14 * 5010 / 6)
    assert remaining_s(lines, 15) == 0.0
    assert remaining_s([], 20) is None


def test_progress_keeps_its_beginning_while_the_work_is_the_same(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    assert read_progress(attempt) == {}
    say_progress(attempt, "rollout", 3)
    first = read_progress(attempt)
    say_progress(attempt, "rollout", 3, "12 of 16 groups kept")
    second = read_progress(attempt)
    say_progress(attempt, "update", 3)
    third = read_progress(attempt)
    assert (first["what"], first["iteration"], first["detail"]) == ("rollout", 3, "")
    assert second["since"] == first["since"] < second["now"]
    assert second["detail"] == "12 of 16 groups kept"
    assert (third["what"], third["since"]) == ("update", third["now"])


def test_progress_that_cannot_be_said_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    say_progress(AttemptDir(tmp_path / "missing"), "rollout", 3)
    assert "progress.json cannot be written" in caplog.text


def test_the_driver_needs_no_torch_to_record() -> None:
    code = (
        "import sys, r1hpc.metrics.metrics, r1hpc.metrics.build, r1hpc.metrics.progress;"
        "print([name for name in ('torch', 'tensorflow', 'matplotlib', 'ray') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
