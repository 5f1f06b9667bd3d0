"""Samples that cannot be trained on are refused, all at once, each by its index."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy
import pytest
from hypothesis import given

from r1hpc.train.samples import SamplesError, check_samples, untrained_samples
from r1hpc.types import Sample
from tests.train.rollouts import VOCAB_SIZE, make_sample, rollouts


def problems_of(samples: list[Sample], at_least: int = 1) -> list[str]:
    with pytest.raises(SamplesError) as caught:
        check_samples(samples, vocab_size=VOCAB_SIZE, at_least=at_least)
    return caught.value.problems


def logprobs(*values: float) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
    return numpy.asarray(values, dtype=numpy.float32)


def tokens(*values: int) -> numpy.ndarray[Any, numpy.dtype[numpy.int32]]:
    return numpy.asarray(values, dtype=numpy.int32)


@given(rollouts())
def test_good_samples_pass(samples: list[Sample]) -> None:
    check_samples(samples, vocab_size=VOCAB_SIZE, at_least=len(samples))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response_len": 0, "rollout_logprobs": None}, "response_len is 0 of 5 tokens"),
        ({"response_len": 5, "rollout_logprobs": None}, "response_len is 5 of 5 tokens"),
        ({"response_len": 7, "rollout_logprobs": None}, "response_len is 7 of 5 tokens"),
        ({"tokens": tokens(1, 2, 3, VOCAB_SIZE, 4)}, "token 3 is 1000; the vocabulary has ids 0 to 999"),
        ({"tokens": tokens(1, -1, 3, -7, 4)}, "token 1 is -1 (and 1 more); the vocabulary"),
        ({"rollout_logprobs": logprobs(-1, -1, -1)}, "rollout_logprobs has shape [3], but response_len is 2"),
        ({"loss_mask": numpy.ones(5, dtype=bool)}, "loss_mask has shape [5], but response_len is 2"),
        ({"rollout_logprobs": logprobs(-1, numpy.nan)}, "rollout_logprobs of response token 1 is nan;"),
        ({"rollout_logprobs": logprobs(-numpy.inf, -1)}, "rollout_logprobs of response token 0 is -inf;"),
        ({"rollout_logprobs": logprobs(0.5, 0.25)}, "rollout_logprobs of response token 0 is 0.5 (and 1 more);"),
        ({"loss_mask": numpy.asarray([2, 1])}, "loss_mask has 1 dimensions of int64; it must have 1, of bool"),
        ({"loss_mask": [True, False]}, "loss_mask is a list; it must be a numpy array of bool"),
        (
            {"tokens": numpy.asarray([1, 1.5, 3, 4, 5])},
            "tokens has 1 dimensions of float64; it must have 1, of integers",
        ),
        ({"tokens": numpy.ones((5, 1), dtype=int)}, "tokens has 2 dimensions of int64; it must have 1, of integers"),
        ({"rollout_logprobs": tokens(-1, -1)}, "rollout_logprobs has 1 dimensions of int32; it must have 1, of float"),
        ({"reward": float("nan")}, "reward is nan; it must be finite"),
        ({"reward": float("inf")}, "reward is inf; it must be finite"),
    ],
)
def test_a_bad_sample_is_named_with_value_and_rule(change: dict[str, Any], said: str) -> None:
    bad = replace(make_sample(7, 3, 2), **change)
    (problem,) = problems_of([bad])
    assert problem.startswith(f"sample 7: {said}")


def test_every_bad_sample_is_listed() -> None:
    good, rewardless, foreign = make_sample(0, 3, 2), make_sample(1, 3, 2, reward=float("nan")), make_sample(2, 1, 3)
    foreign = replace(foreign, tokens=tokens(1, 2, 3, 5000), rollout_logprobs=logprobs(-1, 1, -1))
    problems = problems_of([good, rewardless, foreign])
    assert [problem.split(";")[0] for problem in problems] == [
        "sample 1: reward is nan",
        "sample 2: token 3 is 5000",
        "sample 2: rollout_logprobs of response token 1 is 1.0",
    ]
    with pytest.raises(SamplesError, match="3 sample problems:\n  sample 1: reward"):
        check_samples([good, rewardless, foreign], vocab_size=VOCAB_SIZE)


def test_an_index_must_be_unique() -> None:
    (problem,) = problems_of([make_sample(3, 2, 2), make_sample(4, 2, 2), make_sample(3, 2, 2)])
    assert problem.startswith("sample 3: 2 samples have this index")


def test_all_have_log_probs_or_none() -> None:
    (problem,) = problems_of([make_sample(0, 2, 2), make_sample(1, 2, 2, logprobs=False), make_sample(2, 2, 2)])
    assert problem.startswith("1 of 3 samples have no rollout_logprobs: 1;")


def test_too_few_samples() -> None:
    (problem,) = problems_of([make_sample(0, 2, 2)], at_least=8)
    assert problem.startswith("1 samples, but the optimizer steps of a rollout take 8")


def test_a_log_prob_rounded_to_a_little_over_0_passes() -> None:
    check_samples([replace(make_sample(0, 3, 2), rollout_logprobs=logprobs(1.2e-7, 0.0))], vocab_size=VOCAB_SIZE)


def test_a_fully_masked_sample_passes_and_is_counted() -> None:
    masked = make_sample(1, 2, 3, loss_mask=[False] * 3)
    samples = [make_sample(0, 2, 2), masked, make_sample(2, 2, 2, loss_mask=[False, True])]
    check_samples(samples, vocab_size=VOCAB_SIZE)
    assert untrained_samples(samples) == (1,)


def test_the_error_travels_between_processes() -> None:
    error = SamplesError(["sample 1: reward is nan"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_of_very_many_the_first_are_shown_and_all_are_kept() -> None:
    problems = [f"sample {index}: reward is nan" for index in range(256)]
    error = SamplesError(problems)
    shown = str(error).splitlines()
    assert shown[0] == "256 sample problems:"
    assert shown[-2:] == ["  sample 49: reward is nan", "  and 206 more"]
    assert error.problems == problems
