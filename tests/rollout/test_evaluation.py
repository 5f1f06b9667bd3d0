"""Evaluation: pass@k against counting, sampling of its own, failures that are told of."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import combinations
from math import comb
from typing import Any

import pytest

from r1hpc.config.training import EvalConfig
from r1hpc.rollout.dispatch import DispatchError, EngineStopError, NoEngineError
from r1hpc.rollout.evaluation import EvalResult, Evaluator, eval_params, pass_at_k
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.sampling import SamplingParams
from tests.rollout.scripted import (
    NumberedPrompts,
    Script,
    ScriptedEngines,
    ScriptedRewards,
    decode,
    rollout_config,
)

SCRIPT = Script(seed=5, longest=9)


def make(script: Script = SCRIPT, *, vocab_size: int | None = None, **fields: Any) -> tuple[Evaluator, ScriptedEngines]:
    config = EvalConfig(eval_interval=1, n_samples_per_eval_prompt=3, **fields)
    prompts = NumberedPrompts(100)
    sets = {"aime": prompts.take(5), "math": prompts.take(8)}
    engines = ScriptedEngines(script)
    rewards = ScriptedRewards(script)
    return Evaluator(config, rollout_config(), sets, engines, rewards, decode, vocab_size=vocab_size), engines


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(num_samples: int) -> None:
    for passed in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            subsets = list(combinations([place < passed for place in range(num_samples)], k))
            assert pass_at_k(num_samples, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_of_many_samples_is_exact() -> None:
    exact = 1 - comb(9_990, 1_000) / comb(10_000, 1_000)
    assert pass_at_k(10_000, 10, 1_000) == pytest.approx(exact, rel=1e-12)


def test_results_are_those_of_the_script() -> None:
    evaluator, engines = make(eval_max_response_len=7)
    engines.version = 3
    aime, math = asyncio.run(_evaluate(evaluator, 3))
    assert (aime.name, aime.num_prompts, math.name, math.num_prompts) == ("aime", 5, "math", 8)
    lengths = [min(SCRIPT.length(0, index, sample), 7) for index in range(5) for sample in range(3)]
    rewards = [[SCRIPT.reward(0, index, sample) for sample in range(3)] for index in range(5)]
    assert aime.reward_mean == pytest.approx(sum(map(sum, rewards)) / 15)
    assert aime.pass_at[1] == pytest.approx(aime.reward_mean)
    assert aime.pass_at[3] == sum(any(group) for group in rewards) / 5
    assert sorted(aime.pass_at) == [1, 2, 3]
    assert aime.truncated == pytest.approx(sum(length == 7 for length in lengths) / 15)
    assert (aime.response_len_mean, aime.response_len_max) == (pytest.approx(sum(lengths) / 15), max(lengths))
    assert aime.failed == ()
    assert len({request.request_id for request in engines.requests}) == 13 * 3


async def _evaluate(evaluator: Evaluator, version: int) -> Any:
    return await evaluator.evaluate(0, version)


def test_sampling_is_its_own_where_it_is_set() -> None:
    rollout = rollout_config(rollout_temperature=0.8, rollout_top_p=0.9, rollout_top_k=40)
    assert eval_params(EvalConfig(), rollout) == SamplingParams(0.8, 0.9, 40, 32)
    own = EvalConfig(eval_temperature=0.0, eval_top_p=0.5, eval_max_response_len=64)
    assert eval_params(own, rollout) == SamplingParams(0.0, 0.5, 40, 64)


def test_a_prompt_that_fails_is_named_and_counts_nowhere() -> None:
    evaluator, engines = make()
    engines.spoil = lambda request, group: DispatchError("given up") if request.request_id == "eval0-g2-s0" else None
    aime, math = asyncio.run(_evaluate(evaluator, 0))
    assert aime.failed == ("prompt 2: given up",)
    rewards = [SCRIPT.reward(0, index, sample) for index in (0, 1, 3, 4) for sample in range(3)]
    assert aime.reward_mean == pytest.approx(sum(rewards) / 12)
    assert math.failed == ()


def test_the_engines_are_stopped_after_an_evaluation_and_one_that_does_not_stop_spoils_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluator, engines = make()
    engines.stop_error = EngineStopError("engine1 still runs 3 requests")

    async def twice() -> list[list[EvalResult]]:
        return [await evaluator.evaluate(0, 0), await evaluator.evaluate(1, 0)]

    first, second = asyncio.run(twice())
    assert [result.pass_at for result in first] == [result.pass_at for result in second]
    assert engines.stops == 2
    assert "after the evaluation: engine1 still runs 3 requests" in caplog.text


def test_an_error_stops_the_engines() -> None:
    evaluator, engines = make(replace(SCRIPT, longest=30))
    engines.spoil = lambda request, group: NoEngineError("none left") if group == 4 else None
    with pytest.raises(NoEngineError, match="none left"):
        asyncio.run(_evaluate(evaluator, 0))
    assert (engines.num_pending, engines.stops) == (0, 1)


def test_a_prompt_beyond_the_vocabulary_is_named() -> None:
    evaluator, engines = make(vocab_size=5)
    with pytest.raises(SamplerError, match=r"prompt 4 \(epoch 0\): token 1 of 2 has the id 5"):
        asyncio.run(_evaluate(evaluator, 0))
    assert not any(5 in request.prompt for request in engines.requests)
