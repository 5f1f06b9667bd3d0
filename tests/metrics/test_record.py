"""What an iteration's record says, worked by hand from the reports of the parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1hpc.metrics.build import iteration_record
from r1hpc.metrics.documented import keys_page, told_keys
from r1hpc.metrics.record import EvalNumbers, IterationRecord
from r1hpc.train.normalization import MAXIMA, MEANS
from r1hpc.train.update_stats import StepStats, UpdateStats
from tests.metrics.reports import circumstances, eval_result, rollout_report

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def _update() -> UpdateStats:
    """Two steps of 600 and 1,000 tokens in 2 s each."""
    first = {"loss": 0.25, "kl": 0.5, "mismatch_abs": 0.125, "mismatch_max": 0.5}
    second = {"loss": 0.75, "kl": 1.5, "mismatch_abs": 0.375, "mismatch_max": 0.25}
    steps = (
        StepStats(7, 1e-6, 1.0, 2, 600, 2.0, first, 0.5),
        StepStats(8, 2e-6, 3.0, 2, 1000, 2.0, second, 1.0),
    )
    return UpdateStats(3, steps, {"pack": 0.5, "ref_logprobs": 1.5, "old_logprobs": 1.5, "steps": 4.25, "backup": 0.25})


def _whole() -> IterationRecord:
    return iteration_record(circumstances(), rollout=rollout_report(), update=_update(), evals=[eval_result()])


def test_every_number_of_an_iteration() -> None:
    assert _whole().to_json() == {
        "iteration": 3,
        "attempt": "41-r0",
        "finished": 1000.0,
        "gpus": 8,
        "committed": 1,
        "saving": 2,
        "gpu_hours": 8 * 20 / 3600,
        "rollout/weight_version": 3,
        "rollout/reward": 0.5,
        "rollout/reward_finished": 0.75,
        "rollout/response_len_mean": 75.0,
        "rollout/response_len_max": 90,
        "rollout/truncated": 0.25,
        "rollout/generated_tokens": 2000,
        "rollout/kept_tokens": 1200,
        "rollout/stale_tokens": 100,
        "rollout/wasted_tokens": 500,
        "rollout/wasted": 0.25,
        "rollout/queued": 3,
        "groups/waves": 2,
        "groups/submitted": 10,
        "groups/kept": 4,
        "groups/rejected": 3,
        "groups/failed": 0,
        "groups/surplus": 1,
        "groups/aborted": 2,
        "groups/recycled": 3,
        "groups/given_up": 0,
        "groups/dropped": 0,
        "rejected/all_right": 2,
        "rejected/all_wrong": 1,
        "graded/graded": 27,
        "graded/timeout": 1,
        "train/optimizer_step": 8,
        "train/learning_rate": 2e-6,
        "train/grad_norm": 2.0,
        "train/grad_norm_max": 3.0,
        "train/tokens": 1600,
        "loss/loss": 0.5,
        "loss/kl": 1.0,
        "loss/mismatch_abs": 0.25,
        "loss/mismatch_max": 0.5,
        "eval/heldout/weight_version": 3,
        "eval/heldout/reward": 0.625,
        "eval/heldout/pass@1": 0.625,
        "eval/heldout/pass@2": 0.75,
        "eval/heldout/truncated": 0.0,
        "eval/heldout/response_len_mean": 20.5,
        "eval/heldout/response_len_max": 31,
        "eval/heldout/prompts": 64,
        "eval/heldout/failed": 1,
        "eval/heldout/seconds": 3.0,
        "seconds/iteration": 20.0,
        "seconds/sync": 2.0,
        "seconds/eval": 3.0,
        "seconds/rollout": 8.0,
        "seconds/rollout/stop": 0.5,
        "seconds/update": 8.0,
        "seconds/update/pack": 0.5,
        "seconds/update/steps/optimizer": 1.5,
        "seconds/update/ref_logprobs": 1.5,
        "seconds/update/old_logprobs": 1.5,
        "seconds/update/steps": 4.25,
        "seconds/update/backup": 0.25,
        "tokens_per_s/rollout": 250.0,  # 2,000 in 8 s
        "tokens_per_s/train": 400.0,  # 1,600 in the 4 s of the steps
        "tokens_per_s/update": 200.0,  # 1,600 in 8 s
        "tokens_per_s/iteration": 80.0,  # 1,600 in 20 s
        "sync/bytes": 4096,
        "memory/gpu_free_bytes": 10,
    }


def test_sampling_alone_has_no_numbers_of_training() -> None:
    keys = iteration_record(circumstances(), rollout=rollout_report()).to_json().keys()
    assert not {key for key in keys if key.startswith(("train/", "loss/", "seconds/update", "eval/"))}
    assert {key for key in keys if key.startswith("tokens_per_s/")} == {"tokens_per_s/rollout"}


def test_the_loop_has_the_last_word_on_seconds() -> None:
    around = circumstances()
    around = type(around)(**(vars(around) | {"seconds": {"iteration": 20.0, "rollout": 9.5}}))
    assert iteration_record(around, rollout=rollout_report()).seconds["rollout"] == 9.5


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_what_is_not_finite_is_null_and_named(value: float, name: str) -> None:
    record = IterationRecord(0, "41-r0", 0.0, 1, loss={"loss": value, "kl": 0.5})
    line = record.to_json()
    assert (line["loss/loss"], line["loss/kl"], line["not_finite"]) == (None, 0.5, {"loss/loss": name})
    json.dumps(line, allow_nan=False)


def test_all_that_the_loss_reports_is_explained() -> None:
    """Among it the difference between the engine's log-probs and the trainer's, mean and largest."""
    told = {name.removeprefix("loss/") for name in told_keys() if name.startswith("loss/")}
    assert told == {*MEANS, *MAXIMA}
    assert {"mismatch_abs", "mismatch_max"} <= told


def test_the_page_explains_every_key() -> None:
    assert keys_page() in OPERATIONS.read_text(encoding="utf-8")
    patterns = told_keys()
    for key in _whole().to_json():
        assert any(_matches(key, pattern) for pattern in patterns), key


def test_every_field_is_explained() -> None:
    assert {f"eval/SET/{name}" for name in EvalNumbers.__dataclass_fields__ if name != "pass_at"} <= set(told_keys())


def _matches(key: str, pattern: str) -> bool:
    """Words in capitals stand for any text."""
    parts, pieces = key.split("/"), pattern.split("/")
    if pieces[-1].isupper() and len(parts) > len(pieces):
        parts = [*parts[: len(pieces) - 1], "/".join(parts[len(pieces) - 1 :])]
    return len(parts) == len(pieces) and all(
        piece.isupper() or piece == part or (piece == "pass@K" and part.startswith("pass@"))
        for part, piece in zip(parts, pieces, strict=True)
    )
