"""Which box of which tensor of a checkpoint each element of a parameter is.

Megatron's sharded state dict says it: its factories, built, give views into the parameters (a gated MLP's fc1 holds a
box of the gate's half and one of the up projection's, an expert's weights one box each), and where a view lies in its
parameter is told by its address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from r1hpc.checkpoint.boxes import Box
from r1hpc.model.build import sharded_state, weights
from r1hpc.train.checkpoint.runs import boxes_of_run, joined

MAX_ELEMENTS = 1 << 28
"""Of pieces made into one. A box is one archive in a file, and torch's own reader takes all of it into memory."""


@dataclass(frozen=True)
class Piece:
    """Consecutive elements of a parameter that are one box of a tensor of the checkpoint."""

    begin: int
    """First of them in the flat parameter."""
    key: str
    global_shape: tuple[int, ...]
    box: Box

    @property
    def end(self) -> int:
        """First element after it."""
        return self.begin + self.box.volume


@dataclass(frozen=True)
class Run:
    """Consecutive elements [begin, end) of a tensor of the model that are one box of the checkpoint."""

    name: str
    begin: int
    end: int
    key: str
    global_shape: tuple[int, ...]
    box: Box


@dataclass(frozen=True)
class HeldTensor:
    """A parameter or buffer of this rank's model, and what it is of the checkpoint's."""

    name: str
    """In the model's state dict."""
    tensor: Tensor
    pieces: tuple[Piece, ...]
    """They fill it, in order."""

    def runs(self, begin: int, end: int) -> Iterator[Run]:
        """The elements [begin, end) of the flat tensor as boxes, in order."""
        for piece in self.pieces:
            first, last = max(begin, piece.begin), min(end, piece.end)
            if first >= last:
                continue
            for box in boxes_of_run(piece.box, first - piece.begin, last - piece.begin):
                yield Run(self.name, first, first + box.volume, piece.key, piece.global_shape, box)
                first += box.volume


@dataclass(frozen=True)
class HeldModel:
    """Every tensor of this rank's model that a checkpoint holds."""

    parameters: Mapping[str, HeldTensor]
    buffers: Mapping[str, HeldTensor]
    """The routers' expert biases."""
    extra_states: tuple[str, ...]
    """Keys of the objects that Megatron asks for beside; they hold nothing."""

    @property
    def tensors(self) -> Iterator[HeldTensor]:
        """All of them."""
        yield from self.parameters.values()
        yield from self.buffers.values()


def held_model(model: GPTModel) -> HeldModel:
    """What this rank's (unwrapped) model holds. Not collective; its weights must lie in memory, not be put to sleep."""
    state = sharded_state(model)
    apply_factories(state)
    leaves = list(nested_values(state))
    tensors = weights(model)
    pieces = _pieces_by_name([leaf for leaf in leaves if isinstance(leaf, ShardedTensor)], tensors)
    held = {name: _filled(name, tensor, pieces.get(name, [])) for name, tensor in tensors.items()}
    parameters = dict(model.named_parameters())
    return HeldModel(
        {name: held[name] for name in parameters},
        {name: held[name] for name in held if name not in parameters},
        tuple(leaf.unique_key for leaf in leaves if isinstance(leaf, ShardedObject)),
    )


def _pieces_by_name(sharded: Sequence[ShardedTensor], tensors: Mapping[str, Tensor]) -> dict[str, list[Piece]]:
    owners = sorted((tensor.data_ptr(), name) for name, tensor in tensors.items())
    addresses = [address for address, _ in owners]
    found: dict[str, list[Piece]] = {}
    for leaf in sharded:
        data = leaf.data
        assert data is not None and data.is_contiguous(), f"{leaf.key}: is not one run of a parameter"
        if not data.numel():
            continue
        name = owners[bisect_right(addresses, data.data_ptr()) - 1][1]
        bytes_before = data.data_ptr() - tensors[name].data_ptr()
        begin = bytes_before // data.element_size()
        inside = bytes_before >= 0 and begin + data.numel() <= tensors[name].numel()
        assert inside and data.dtype == tensors[name].dtype, f"{leaf.key}: is no view of a parameter of the model"
        box = Box(tuple(leaf.global_offset), (1,) * leaf.prepend_axis_num + tuple(leaf.local_shape))
        found.setdefault(name, []).append(Piece(begin, leaf.key, tuple(leaf.global_shape), box))
    return found


def _filled(name: str, tensor: Tensor, pieces: Sequence[Piece]) -> HeldTensor:
    ordered = sorted(pieces, key=lambda piece: piece.begin)
    ends = [0, *(piece.end for piece in ordered)]
    begins = [*(piece.begin for piece in ordered), tensor.numel()]
    assert begins == ends, f"{name}: its pieces begin at {begins} and end at {ends}; they must fill it"
    return HeldTensor(name, tensor, tuple(_as_few(ordered)))


def _as_few(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbors that are one box together, as one: gate, up and all experts of a rank are often a single box."""
    found: list[Piece] = []
    for piece in pieces:
        found.append(piece)
        while len(found) > 1 and (both := _one_piece(*found[-2:])) is not None:
            found[-2:] = [both]
    return found


def _one_piece(first: Piece, second: Piece) -> Piece | None:
    box = joined(first.box, second.box) if first.key == second.key else None
    return replace(first, box=box) if box is not None and box.volume <= MAX_ELEMENTS else None
