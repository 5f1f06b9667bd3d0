"""Copies that are late, as on a GPU: whoever does not wait for one reads or overwrites the wrong values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from r1hpc.train.arena import Arena
from r1hpc.train.staging import SLOTS, Piece, PlainCopies, Staged, Wait, staging_specs

ELEMENTS = 16


class LateCopies:
    """Copies when it is waited for and not before; counts those begun and not yet done."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.most_pending = 0
        self._begun = 0

    def after_main_stream(self) -> None:
        assert not self.pending

    def begin(self, target: Tensor, source: Tensor) -> Wait:
        number = self._begun
        self._begun += 1
        self.pending.append(number)
        self.most_pending = max(self.most_pending, len(self.pending))

        def wait() -> None:
            if number in self.pending:
                self.pending.remove(number)
                target.copy_(source)

        return wait


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("late", ["down", "up", "both", "none"])
def test_every_piece_meets_its_own_gradient_and_sends_its_own_result(late: str, count: int, overlap: bool) -> None:
    down = LateCopies() if late in ("down", "both") else PlainCopies()
    up = LateCopies() if late in ("up", "both") else PlainCopies()
    pieces = _pieces(count)
    staged = Staged(Arena(staging_specs(ELEMENTS), torch.device("cpu")).tensors, down, up, overlap)
    staged.run(pieces, _add)
    for number, piece in enumerate(pieces):
        assert set(piece.master.tolist()) == {100.0 + 3 * number}
        assert set(piece.weights.tolist()) == {100.0 + 3 * number}
    for copies in (down, up):
        assert not (isinstance(copies, LateCopies) and copies.pending)


def test_with_overlap_one_gradient_comes_and_one_result_leaves_while_a_piece_is_computed() -> None:
    seen: dict[bool, list[tuple[int, int]]] = {}
    for overlap in (False, True):
        down, up = LateCopies(), LateCopies()
        staged = Staged(Arena(staging_specs(ELEMENTS), torch.device("cpu")).tensors, down, up, overlap)
        seen[overlap] = []
        staged.run(_pieces(4), _watched(seen[overlap], down, up))
    assert seen[False] == [(0, 0)] * 4
    # the last piece has no successor; the first has no predecessor, and results leave at most SLOTS at a time
    assert seen[True] == [(1, 0), (1, 1), (1, SLOTS), (0, SLOTS)]


def _watched(seen: list[tuple[int, int]], down: LateCopies, up: LateCopies) -> Callable[[Piece, Tensor], None]:
    def update(piece: Piece, gradient: Tensor) -> None:
        seen.append((len(down.pending), len(up.pending)))
        _add(piece, gradient)

    return update


def _add(piece: Piece, gradient: Tensor) -> None:
    piece.master.add_(gradient)


def _pieces(count: int) -> list[Piece]:
    """Of falling sizes; master 100, gradient 3 * number, weights bfloat16."""
    pieces = []
    for number in range(count):
        size = ELEMENTS - number
        pieces.append(
            Piece(
                weights=torch.zeros(size, dtype=torch.bfloat16),
                gradient=torch.full((size,), 3.0 * number),
                master=torch.full((size,), 100.0),
                exp_avg=torch.zeros(size),
                exp_avg_sq=torch.zeros(size),
                group=0,
            )
        )
    return pieces
