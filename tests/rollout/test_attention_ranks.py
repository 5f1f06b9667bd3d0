"""All samples of a prompt on one attention rank, prompts evenly over the ranks."""

from __future__ import annotations

from contextlib import ExitStack

import numpy

from r1hpc.rollout.attention_ranks import AttentionRanks
from r1hpc.rollout.protocol import Request, request_body
from r1hpc.rollout.sampling import SamplingParams


def prompt(number: int) -> numpy.typing.NDArray[numpy.int32]:
    return numpy.asarray([1, number, 2], dtype=numpy.int32)


def test_samples_of_a_prompt_share_a_rank_and_prompts_are_dealt_evenly() -> None:
    ranks = AttentionRanks(4)
    with ExitStack() as flying:
        taken = [[flying.enter_context(ranks.take(prompt(number))) for _ in range(8)] for number in range(8)]
        assert all(len(set(of_prompt)) == 1 for of_prompt in taken)
        assert sorted(of_prompt[0] or 0 for of_prompt in taken) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_rank_that_has_nothing_to_do_comes_first() -> None:
    ranks = AttentionRanks(2)
    with ranks.take(prompt(0)) as first:
        with ranks.take(prompt(1)) as second:
            assert {first, second} == {0, 1}
        with ranks.take(prompt(2)) as third:
            assert third == second
        with ranks.take(prompt(0)) as again:
            assert again == first


def test_only_an_engine_with_attention_ranks_is_told_one() -> None:
    request = Request(prompt(0), SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=4), "a")
    with AttentionRanks(1).take(request.prompt) as none:
        assert "routed_dp_rank" not in request_body(request, "rid", none)
    with AttentionRanks(8).take(request.prompt) as rank:
        assert request_body(request, "rid", rank)["routed_dp_rank"] == 0
