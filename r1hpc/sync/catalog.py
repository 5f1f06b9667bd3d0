"""Who puts each Hugging Face tensor together, and out of which rank's elements: one plan, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from r1hpc.checkpoint.boxes import Box, coverage_problem
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.plan.model_shape import ModelShape
from r1hpc.sync.outline import SyncProblems
from r1hpc.train.checkpoint.pieces import HeldModel

MAX_PROBLEMS = 20
"""Said of a catalog."""


@dataclass(frozen=True)
class Holding:
    """Consecutive elements of one rank's weight that are one box of a checkpoint's tensor."""

    rank: int
    weight: str
    """Its name in that rank's model."""
    begin: int
    """First of the elements in the flat weight."""
    key: str
    global_shape: tuple[int, ...]
    box: Box
    dtype: torch.dtype

    def take(self, weights: Mapping[str, Tensor], part: Box) -> Tensor:
        """The elements of `part`, which lies in the box, as a view; on the rank that holds them."""
        flat = weights[self.weight].view(-1)[self.begin : self.begin + self.box.volume]
        return flat.view(self.box.sizes)[part.slices_in(self.box)]


@dataclass(frozen=True)
class Part:
    """A box of a Hugging Face tensor and the rank that it is taken from."""

    holding: Holding
    box: Box
    """In the checkpoint's tensor."""

    def slices(self, name: TensorName) -> tuple[slice, ...]:
        """Where it lies in the Hugging Face tensor."""
        return self.box.slices_in(Box(name.offset, name.box))[-len(name.shape) :]


@dataclass(frozen=True)
class Assembly:
    """How one Hugging Face tensor is put together."""

    name: TensorName
    dtype: torch.dtype
    assembler: int
    """The rank that does it, one of those that hold a part."""
    parts: tuple[Part, ...]
    """They fill the tensor exactly once."""


def holdings(held: HeldModel, rank: int) -> tuple[Holding, ...]:
    """Everything that this rank holds of the checkpoint's tensors."""
    return tuple(
        Holding(rank, tensor.name, piece.begin, piece.key, piece.global_shape, piece.box, tensor.tensor.dtype)
        for tensor in held.tensors
        for piece in tensor.pieces
    )


def plan_assemblies(shape: ModelShape, everyones: Sequence[Sequence[Holding]]) -> tuple[Assembly, ...]:
    """Every tensor of the Hugging Face checkpoint but those of prediction layers, layer by layer.

    everyones: the holdings of each rank. Work is dealt evenly: an assembler is the holder with the fewest bytes so far,
    and of ranks that hold the same box the one that has sent least gives it.
    Raises SyncProblems where a tensor is not held whole, or held differently.
    """
    names = tensors(replace(shape, num_mtp_layers=0))
    meeting = _Meeting(names, everyones)
    deal = _Deal(len(everyones))
    problems: list[str] = list(meeting.problems)
    found: list[Assembly] = []
    for name in names:
        parts = meeting.parts[name.hf]
        if problem := _problem(name, parts):
            problems.append(problem)
        else:
            found.append(deal.assembly(name, parts))
    if problems:
        rest = len(problems) - MAX_PROBLEMS
        raise SyncProblems(problems[:MAX_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else []))
    return tuple(found)


class _Meeting:
    """What every rank holds of every Hugging Face tensor."""

    def __init__(self, names: Sequence[TensorName], everyones: Sequence[Sequence[Holding]]) -> None:
        self.parts: dict[str, list[Part]] = {name.hf: [] for name in names}
        self.problems: list[str] = []
        self._of_key: dict[str, dict[int | None, list[TensorName]]] = {}
        """Of experts, which a layer has hundreds of, by their number: none looks at all the others."""
        for name in names:
            self._of_key.setdefault(name.key, {}).setdefault(name.expert, []).append(name)
        for holding in (holding for holdings in everyones for holding in holdings):
            self._add(holding)

    def _add(self, holding: Holding) -> None:
        for name in self._near(holding):
            if holding.global_shape != name.global_shape:
                self.problems.append(
                    f"rank {holding.rank} holds {holding.key} as a part of {list(holding.global_shape)};"
                    f" the model's configuration makes it {list(name.global_shape)}"
                )
                return
            if (box := holding.box.meet(Box(name.offset, name.box))) is not None:
                self.parts[name.hf].append(Part(holding, box))

    def _near(self, holding: Holding) -> Iterator[TensorName]:
        by_expert = self._of_key.get(holding.key)
        if by_expert is None:
            self.problems.append(f"rank {holding.rank} holds {holding.key}, which no tensor of the model is made of")
        elif None in by_expert:
            yield from by_expert[None]
        else:
            for expert in range(holding.box.offset[0], holding.box.end[0]):
                yield from by_expert.get(expert, ())


def _problem(name: TensorName, parts: Sequence[Part]) -> str | None:
    if not parts:
        return f"{name.hf}: no rank holds any of it ({name.key})"
    dtypes = sorted({str(part.holding.dtype) for part in parts})
    if len(dtypes) > 1:
        return f"{name.hf}: its parts are {' and '.join(dtypes)}"
    distinct = list({part.box: None for part in parts})
    if problem := coverage_problem(Box(name.offset, name.box), distinct):
        return f"{name.hf}: {problem}"
    return None


class _Deal:
    """Deals the work evenly among the ranks."""

    def __init__(self, ranks: int) -> None:
        self._assembled = [0] * ranks
        self._given = [0] * ranks

    def assembly(self, name: TensorName, parts: Sequence[Part]) -> Assembly:
        assembler = min({part.holding.rank for part in parts}, key=lambda rank: (self._assembled[rank], rank))
        chosen = []
        for box in {part.box: None for part in parts}:
            given = min(
                (part for part in parts if part.box == box),
                key=lambda part: (part.holding.rank != assembler, self._given[part.holding.rank], part.holding.rank),
            )
            if given.holding.rank != assembler:
                self._given[given.holding.rank] += box.volume
            chosen.append(given)
        self._assembled[assembler] += sum(part.box.volume for part in chosen)
        return Assembly(name, parts[0].holding.dtype, assembler, tuple(chosen))
