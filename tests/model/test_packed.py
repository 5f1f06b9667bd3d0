"""Packed sequences: every token lies on exactly one context rank, and every chunk knows what precedes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.model.packed import local_indices, local_positions, pack_sequences

CP_SIZES = st.sampled_from([1, 2, 3, 4, 8])


@st.composite
def packs(draw: st.DrawFn) -> tuple[list[int], int]:
    """Lengths that can be cut, and the number of context ranks."""
    cp_size = draw(CP_SIZES)
    multiple = 2 * cp_size if cp_size > 1 else 1
    return [multiple * chunk for chunk in draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))], cp_size


def test_zig_zag_by_hand() -> None:
    # 8 tokens in 4 chunks of 2, 4 tokens in 4 chunks of 1; rank 0 holds chunks 0 and 3, rank 1 holds 1 and 2.
    first, second = (pack_sequences([8, 4], rank, 2) for rank in (0, 1))
    assert first.positions.tolist() == [0, 1, 6, 7, 0, 3]
    assert second.positions.tolist() == [2, 3, 4, 5, 1, 2]
    assert first.gathered_order is not None
    assert first.gathered_order.tolist() == [0, 1, 6, 7, 8, 9, 2, 3, 4, 10, 11, 5]
    assert first.local_tokens == 6
    last = first.chunks[-1]
    assert (last.local, last.whole, last.before) == (slice(5, 6), slice(11, 12), slice(8, 11))


@given(packs())
@settings(deadline=None)
def test_ranks_hold_every_token_once_and_as_many_each(pack: tuple[list[int], int]) -> None:
    lengths, cp_size = pack
    held = [local_indices(lengths, rank, cp_size) for rank in range(cp_size)]
    assert {len(tokens) for tokens in held} == {sum(lengths) // cp_size}
    assert torch.cat(held).sort().values.tolist() == list(range(sum(lengths)))


@given(packs())
@settings(deadline=None)
def test_gathered_order_puts_rank_major_tokens_into_whole_sequences(pack: tuple[list[int], int]) -> None:
    lengths, cp_size = pack
    gathered = torch.cat([local_indices(lengths, rank, cp_size) for rank in range(cp_size)])
    for rank in range(cp_size):
        order = pack_sequences(lengths, rank, cp_size).gathered_order
        if order is None:
            assert cp_size == 1
        else:
            assert gathered[order].tolist() == list(range(sum(lengths)))


@given(packs())
@settings(deadline=None)
def test_chunks_cover_the_ranks_tokens_in_order_and_start_after_what_precedes_them(pack: tuple[list[int], int]) -> None:
    lengths, cp_size = pack
    starts = {sum(lengths[:number]) for number in range(len(lengths))}
    for rank in range(cp_size):
        sequences, indices = pack_sequences(lengths, rank, cp_size), local_indices(lengths, rank, cp_size)
        covered = 0
        for chunk in sequences.chunks:
            assert chunk.local.start == covered
            covered = chunk.local.stop
            assert indices[chunk.local].tolist() == list(range(chunk.whole.start, chunk.whole.stop))
            assert chunk.before.start in starts
            assert chunk.before.stop == chunk.whole.start
            assert sequences.positions[chunk.local].tolist() == [
                place - chunk.before.start for place in range(chunk.whole.start, chunk.whole.stop)
            ]
        assert covered == sequences.local_tokens == len(sequences.positions)


@given(packs())
@settings(deadline=None)
def test_every_rank_has_the_same_number_of_query_key_pairs(pack: tuple[list[int], int]) -> None:
    lengths, cp_size = pack
    pairs = [int((local_positions(lengths, rank, cp_size) + 1).sum()) for rank in range(cp_size)]
    assert sum(pairs) == sum(length * (length + 1) // 2 for length in lengths)
    assert len(set(pairs)) == 1


@pytest.mark.parametrize(("lengths", "cp_size"), [([8, 6], 2), ([0], 1), ([12], 4), ([4, -4], 2)])
def test_a_length_that_cannot_be_cut_is_refused_with_its_number(lengths: list[int], cp_size: int) -> None:
    wrong = next(n for n, length in enumerate(lengths) if length < 1 or length % (2 * cp_size))
    with pytest.raises(ValueError, match=f"sequence {wrong} has {lengths[wrong]} tokens"):
        pack_sequences(lengths, 0, cp_size)
