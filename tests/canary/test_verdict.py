"""What of two iterations is found wrong, and which step is named."""

from __future__ import annotations

import math
from dataclasses import replace

from r1hpc.canary.bound import Bound
from r1hpc.canary.verdict import Iterated, findings, of_sync
from r1hpc.sync.report import SyncReport

BOUND = Bound(0.1, "engines in fp8")
GOOD = Iterated(0, {"engine0": 9, "engine1": 7}, 0.06, 1.5, 0.4)
AFTER = replace(GOOD, iteration=1)


def test_two_good_iterations_have_no_findings() -> None:
    assert findings([GOOD, AFTER], BOUND) == []
    assert findings([replace(GOOD, mismatch_abs=0.1)], BOUND) == []


def test_log_probs_that_differ_after_a_release_are_named_with_their_numbers() -> None:
    (found,) = findings([GOOD, replace(AFTER, mismatch_abs=0.243)], BOUND)
    assert found.step == "sampling"
    assert found.text == (
        "iteration 1: with an update, after memory was released and taken again the engines' log-probs differ from the"
        " trainer's by 0.24 in the mean, 1.5 at most; the mean may be 0.1 (engines in fp8)"
    )


def test_a_difference_that_is_no_number_or_unknown_is_no_agreement() -> None:
    assert len(findings([replace(GOOD, mismatch_abs=math.nan)], BOUND)) == 1
    assert len(findings([replace(GOOD, mismatch_abs=None)], BOUND)) == 1


def test_an_engine_that_answered_nothing_is_named() -> None:
    (found,) = findings([replace(GOOD, served={"engine0": 16, "engine1": 0})], BOUND)
    assert found.step == "sampling" and "engine1 finished no response" in found.text


def test_an_update_without_gradients_is_none() -> None:
    assert [found.step for found in findings([replace(GOOD, grad_norm=0.0)], BOUND)] == ["updating"]
    assert [found.step for found in findings([replace(GOOD, grad_norm=math.inf)], BOUND)] == ["updating"]


def test_weights_that_did_not_arrive_are_told() -> None:
    assert of_sync(SyncReport(1, ("engine0", "engine1"), {}), 1) == []
    assert of_sync(SyncReport(1, ("engine0",), {"engine1": "checksums differ"}), 1) == [
        "engine1 has not got weights 1: checksums differ"
    ]
    assert of_sync(SyncReport(0, ("engine0",), {}), 1) == [
        "weights 1 were to be published, and the last that were are version 0"
    ]
    assert of_sync(None, 0) == ["weights 0 were to be published, and the last that were are none"]
