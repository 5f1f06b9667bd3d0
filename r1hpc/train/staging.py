"""How Adam's state, piece by piece, meets gradients and weights that lie with it, or on the other side of a bus."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from r1hpc.train.arena import TensorSpec

SLOTS = 2
"""One piece is computed while the next one's gradient arrives and the last one's weights leave."""


@dataclass(frozen=True)
class Piece:
    """Some neighboring values of one parameter: n of them, at most as many as a staging buffer holds."""

    weights: Tensor
    """[n] of the parameter itself, in its dtype."""
    gradient: Tensor
    """[n] float32, on the parameter's device."""
    master: Tensor
    """[n] float32, where the state lies; the same for the moments."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    group: int
    """Of the optimizer's parameter groups."""


Update = Callable[[Piece, Tensor], None]
"""Changes master and moments of a piece by its gradient, which lies where they lie."""


Wait = Callable[[], None]
"""Returns when a copy is done."""


class Copies(Protocol):
    """Copies one way, in order, beside the computation."""

    def after_main_stream(self) -> None:
        """Let no copy begin before the work that was given to the device until now is done."""
        ...

    def begin(self, target: Tensor, source: Tensor) -> Wait:
        """Begin a copy; neither tensor may change until it is done."""
        ...


class Exchange(Protocol):
    """Brings gradients to the state and new weights back."""

    def run(self, pieces: Sequence[Piece], update: Update) -> None:
        """Update every piece and set its weights to the rounded master; all is done when this returns."""
        ...


class InPlace:
    """State and parameters lie on the same device: nothing is to be moved."""

    def run(self, pieces: Sequence[Piece], update: Update) -> None:
        for piece in pieces:
            update(piece, piece.gradient)
            piece.weights.copy_(piece.master)


class PlainCopies:
    """On a CPU: done as soon as begun."""

    def after_main_stream(self) -> None:
        pass

    def begin(self, target: Tensor, source: Tensor) -> Wait:
        target.copy_(source)
        return lambda: None


class StreamCopies:
    """To and from a GPU, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def after_main_stream(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def begin(self, target: Tensor, source: Tensor) -> Wait:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
        done: Wait = self._stream.record_event().synchronize
        return done


class Staged:
    """The state lies in host memory: gradients come down to it and weights go up, through two buffers each way.

    With `overlap` a piece is copied while its neighbors are computed. The same on a CPU, where the copies are plain.
    """

    def __init__(self, buffers: Sequence[Tensor], down: Copies, up: Copies, overlap: bool) -> None:
        """buffers: as staging_specs asks for them, pinned where the parameters are on a GPU."""
        self._gradients, self._results = buffers[:SLOTS], buffers[SLOTS:]
        self._down, self._up = down, up
        self._pieces_ahead = 1 if overlap else 0

    def run(self, pieces: Sequence[Piece], update: Update) -> None:
        self._down.after_main_stream()
        self._up.after_main_stream()
        arrivals: list[Wait] = []
        departures: list[Wait] = []
        for number, piece in enumerate(pieces):
            for coming in range(len(arrivals), min(number + 1 + self._pieces_ahead, len(pieces))):
                arrivals.append(self._down.begin(self._gradient(coming, pieces[coming]), pieces[coming].gradient))
            arrivals[number]()
            update(piece, self._gradient(number, piece))
            if number >= SLOTS:
                departures[number - SLOTS]()
            result = self._result(number, piece)
            result.copy_(piece.master)
            departures.append(self._up.begin(piece.weights, result))
            if not self._pieces_ahead:
                departures[number]()
        for departed in departures[-SLOTS:]:
            departed()

    def _gradient(self, number: int, piece: Piece) -> Tensor:
        return self._gradients[number % SLOTS][: piece.gradient.numel()]

    def _result(self, number: int, piece: Piece) -> Tensor:
        size_bytes = piece.weights.numel() * piece.weights.element_size()
        return self._results[number % SLOTS][:size_bytes].view(piece.weights.dtype)


def staging_specs(piece_elements: int) -> list[TensorSpec]:
    """The buffers that Staged needs for pieces of at most so many elements, of weights of up to 4 bytes."""
    gradient = TensorSpec((piece_elements,), torch.float32)
    result = TensorSpec((piece_elements * 4,), torch.uint8)
    return [gradient] * SLOTS + [result] * SLOTS
