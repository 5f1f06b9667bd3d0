"""Collating: alignment with the logits, padding, and that the shares of all context ranks are the samples again."""

from __future__ import annotations

import random
from dataclasses import replace
from math import lcm

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from r1hpc.train.collate import collate, gather_responses, padded_lengths
from r1hpc.train.microbatch import MicroBatch
from r1hpc.types import Sample
from tests.train.rollouts import make_sample, rollouts

CP_SIZES = st.sampled_from((1, 2, 4, 8))


def all_shares(samples: list[Sample], places: list[int], cp_size: int, multiple: int) -> list[MicroBatch]:
    return [
        collate(samples, places, cp_rank=rank, cp_size=cp_size, multiple=multiple, device="cpu")
        for rank in range(cp_size)
    ]


def reassembled(shares: list[MicroBatch], values: list[Tensor]) -> Tensor:
    """Whole sequences from the [T] of every rank, by the order that attention gathers with."""
    order = shares[0].sequences.gathered_order
    gathered = torch.cat(values)
    return gathered if order is None else gathered[order]


def test_two_samples_worked_by_hand() -> None:
    first = Sample(
        index=0,
        group_index=0,
        tokens=numpy.asarray([11, 12, 13, 14, 15], dtype=numpy.int32),
        response_len=2,
        reward=1.0,
        rollout_logprobs=numpy.asarray([-0.5, -0.25], dtype=numpy.float32),
        loss_mask=numpy.asarray([False, True]),
    )
    second = Sample(
        index=1,
        group_index=0,
        tokens=numpy.asarray([21, 22, 23], dtype=numpy.int32),
        response_len=2,
        reward=0.0,
        rollout_logprobs=numpy.asarray([-1.0, -2.0], dtype=numpy.float32),
    )
    batch = collate([first, second], (1, 0), cp_rank=0, cp_size=1, multiple=6, device="cpu")
    assert batch.samples == (1, 0)
    assert batch.sequences.lengths == (3, 5, 4)
    assert batch.sequences.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.tokens.tolist() == [21, 22, 23, 11, 12, 13, 14, 15, 0, 0, 0, 0]
    assert batch.targets.tolist() == [22, 23, 0, 12, 13, 14, 15, 0, 0, 0, 0, 0]
    assert batch.sample_of.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    # 13 is the last of the prompt of the first sample: its logit tells 14.
    assert batch.response_mask.nonzero().flatten().tolist() == [0, 1, 5, 6]
    assert batch.loss_mask.nonzero().flatten().tolist() == batch.rows.tolist() == [0, 1, 6]
    assert batch.mask_sums.tolist() == [2.0, 1.0, 1.0]
    assert batch.rollout_logprobs is not None
    assert batch.rollout_logprobs.tolist() == [-1.0, -2.0, 0.0, 0.0, 0.0, -0.5, -0.25, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_a_response_over_the_border_of_two_context_ranks() -> None:
    # 8 tokens, chunks of 2: rank 0 has 1 2 7 8, rank 1 has 3 4 5 6. The logit of 2 is on rank 0 and tells 3, of rank 1.
    sample = replace(make_sample(0, 2, 6), tokens=numpy.arange(1, 9, dtype=numpy.int32))
    zero, one = all_shares([sample], [0], 2, 1)
    assert zero.tokens.tolist() == [1, 2, 7, 8]
    assert zero.targets.tolist() == [2, 3, 8, 0]
    assert zero.rows.tolist() == [1, 2]
    assert one.tokens.tolist() == [3, 4, 5, 6]
    assert one.targets.tolist() == [4, 5, 6, 7]
    assert one.rows.tolist() == [0, 1, 2, 3]
    assert zero.mask_sums.tolist() == one.mask_sums.tolist() == [6.0, 1.0]


def test_a_rank_without_a_response_token_has_no_rows() -> None:
    zero, one = all_shares([make_sample(0, 14, 1)], [0], 2, 4)
    assert len(zero.tokens) == len(one.tokens) == 8
    # The logit of token 13 tells token 14: chunk 3 of 4, which is rank 0's.
    assert zero.rows.tolist() == [5]
    assert one.rows.tolist() == []


@given(rollouts(), CP_SIZES, st.integers(1, 24), st.randoms(use_true_random=False))
def test_the_shares_of_all_context_ranks_are_the_samples_again(
    samples: list[Sample], cp_size: int, multiple: int, shuffler: random.Random
) -> None:
    places = list(range(len(samples)))
    shuffler.shuffle(places)
    shares = all_shares(samples, places, cp_size, multiple)
    fields = ("tokens", "targets", "response_mask", "loss_mask", "sample_of")
    whole = {field: reassembled(shares, [getattr(share, field) for share in shares]).numpy() for field in fields}
    begin = 0
    for number, (place, length) in enumerate(zip(places, shares[0].sequences.lengths, strict=False)):
        sample = samples[place]
        total, response = len(sample.tokens), sample.response_len
        own = {field: values[begin : begin + length] for field, values in whole.items()}
        mask = numpy.ones(response, dtype=bool) if sample.loss_mask is None else sample.loss_mask
        # The logit of token t is about token t + 1.
        for t in range(length):
            real, told = t < total, t + 1 < total
            answers = told and t + 1 >= total - response
            assert own["tokens"][t] == (sample.tokens[t] if real else 0)
            assert own["targets"][t] == (sample.tokens[t + 1] if told else 0)
            assert own["sample_of"][t] == (number if real else len(samples))
            assert own["response_mask"][t] == answers
            assert own["loss_mask"][t] == (answers and mask[t + 1 - (total - response)])
        begin += length
    for field in fields:
        assert (whole[field][begin:] == (len(samples) if field == "sample_of" else 0)).all()


@given(rollouts(), CP_SIZES, st.integers(1, 24))
def test_masks_add_up_over_context_ranks(samples: list[Sample], cp_size: int, multiple: int) -> None:
    places = range(len(samples))
    shares = all_shares(samples, list(places), cp_size, multiple)
    trained = torch.zeros(len(samples) + 1)
    for share in shares:
        assert share.rows.tolist() == share.loss_mask.nonzero().flatten().tolist()
        trained.index_add_(0, share.sample_of, share.loss_mask.float())
        assert torch.equal(share.mask_sums, shares[0].mask_sums)
    expected = [s.response_len if s.loss_mask is None else sum(s.loss_mask.tolist()) for s in samples]
    assert trained.tolist() == [*expected, 0]
    assert shares[0].mask_sums.tolist() == [*expected, 1]


@given(rollouts(), CP_SIZES, st.integers(1, 24))
def test_log_probs_and_targets_come_back_as_the_responses(samples: list[Sample], cp_size: int, multiple: int) -> None:
    places = list(range(len(samples)))
    shares = all_shares(samples, places, cp_size, multiple)
    for found, sample in zip(gather_responses([s.targets for s in shares], samples, places), samples, strict=True):
        numpy.testing.assert_array_equal(found, sample.tokens[-sample.response_len :])
    told = [share.rollout_logprobs for share in shares if share.rollout_logprobs is not None]
    if samples[0].rollout_logprobs is None:
        assert not told
        return
    for found, sample in zip(gather_responses(told, samples, places), samples, strict=True):
        assert sample.rollout_logprobs is not None
        numpy.testing.assert_array_equal(found, sample.rollout_logprobs)
    for share, logprobs in zip(shares, told, strict=True):
        assert not logprobs[~share.response_mask].any()


@given(rollouts(), CP_SIZES, st.integers(1, 24))
def test_padding_is_the_least_that_divides(samples: list[Sample], cp_size: int, multiple: int) -> None:
    lengths = padded_lengths(samples, cp_size, multiple)
    chunks = 2 * cp_size if cp_size > 1 else 1
    own, padding = lengths[: len(samples)], sum(lengths[len(samples) :])
    assert len(lengths) <= len(samples) + 1
    for sample, length in zip(samples, own, strict=True):
        assert length % chunks == 0 and 0 <= length - len(sample.tokens) < chunks
    fitting = (p for p in range(0, chunks * multiple + 1, chunks) if (sum(own) + p) % (cp_size * multiple) == 0)
    assert padding == next(fitting)
    batch = collate(samples, range(len(samples)), cp_rank=0, cp_size=cp_size, multiple=multiple, device="cpu")
    assert len(batch.tokens) % multiple == 0
    assert len(batch.tokens) == batch.sequences.local_tokens == sum(lengths) // cp_size
    assert padding < cp_size * lcm(2, multiple)


@pytest.mark.parametrize(("cp_size", "multiple", "lengths"), [(1, 1, [5, 9]), (1, 8, [5, 9, 2]), (2, 8, [8, 12, 12])])
def test_padding_worked_by_hand(cp_size: int, multiple: int, lengths: list[int]) -> None:
    assert padded_lengths([make_sample(0, 3, 2), make_sample(1, 5, 4)], cp_size, multiple) == lengths


@pytest.mark.parametrize(
    ("cp_size", "multiple", "chunk", "lengths"),
    [(1, 1, 4, [8, 12]), (1, 32, 4, [8, 12, 12]), (2, 1, 4, [16, 16]), (2, 12, 4, [16, 16, 16])],
)
def test_chunks_of_coarser_lengths_worked_by_hand(cp_size: int, multiple: int, chunk: int, lengths: list[int]) -> None:
    samples = [make_sample(0, 3, 2), make_sample(1, 5, 4)]
    assert padded_lengths(samples, cp_size, multiple, chunk) == lengths
    shares = [
        collate(samples, (0, 1), cp_rank=rank, cp_size=cp_size, multiple=multiple, device="cpu", chunk=chunk)
        for rank in range(cp_size)
    ]
    assert all(len(part) % chunk == 0 for share in shares for part in pieces(share))
    targets = gather_responses([share.targets for share in shares], samples, (0, 1), chunk)
    assert [target.tolist() for target in targets] == [
        sample.tokens[-sample.response_len :].tolist() for sample in samples
    ]


def pieces(share: MicroBatch) -> list[range]:
    """The chunks of queries of a rank."""
    return [range(chunk.local.start, chunk.local.stop) for chunk in share.sequences.chunks]
