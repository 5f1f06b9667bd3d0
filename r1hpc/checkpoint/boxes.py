"""Boxes of a tensor: where they meet, and whether some of them fill another exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """The elements of a tensor from `offset` on, `sizes` of them on each axis."""

    offset: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def end(self) -> tuple[int, ...]:
        """First index after it, on each axis."""
        return tuple(offset + size for offset, size in zip(self.offset, self.sizes, strict=True))

    @property
    def volume(self) -> int:
        """Elements in it."""
        return math.prod(self.sizes)

    def meet(self, other: Box) -> Box | None:
        """The elements that both have; null where there are none."""
        offset = tuple(map(max, self.offset, other.offset))
        sizes = tuple(end - begin for begin, end in zip(offset, map(min, self.end, other.end), strict=True))
        return Box(offset, sizes) if all(size > 0 for size in sizes) else None

    def slices_in(self, outer: Box) -> tuple[slice, ...]:
        """Index of this box in a tensor that holds `outer`."""
        return tuple(
            slice(mine - base, mine - base + size)
            for mine, base, size in zip(self.offset, outer.offset, self.sizes, strict=True)
        )

    def __str__(self) -> str:
        return "[" + ", ".join(f"{begin}:{end}" for begin, end in zip(self.offset, self.end, strict=True)) + "]"


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return Box((0,) * len(shape), tuple(shape))


def overlap(parts: Iterable[Box]) -> tuple[Box, Box] | None:
    """Two of the parts that share elements; null if none do.

    A sweep along the first two axes: expert tensors have hundreds of parts, of which few lie side by side.
    """
    open_parts: list[Box] = []
    for part in sorted(parts, key=lambda box: box.offset):
        open_parts = [box for box in open_parts if box.end[:1] > part.offset[:1]]
        for box in open_parts:
            if box.meet(part) is not None:
                return box, part
        open_parts.append(part)
    return None


def coverage_problem(box: Box, parts: Sequence[Box]) -> str | None:
    """What keeps `parts` from filling `box` exactly once, in words; null if nothing does."""
    for part in parts:
        inside = box.meet(part)
        if part.volume and (inside is None or inside.volume != part.volume):
            return f"the part {part} lies outside of {box}"
    if pair := overlap(parts):
        return f"the parts {pair[0]} and {pair[1]} overlap"
    filled = sum(part.volume for part in parts)
    if filled != box.volume:
        return f"{box.volume - filled:,} of {box.volume:,} elements are missing ({hole(box, parts)})"
    return None


def hole(box: Box, parts: Sequence[Box]) -> str:
    """One box that no part covers, in words; of parts that do not overlap."""
    left = [box]
    for part in parts:
        left = [rest for piece in left for rest in _without(piece, part)]
    return f"among them {min(left, key=lambda piece: piece.offset)}" if left else "none"


def _without(box: Box, part: Box) -> list[Box]:
    """`box` less `part`, as boxes."""
    common = box.meet(part)
    if common is None:
        return [box]
    pieces: list[Box] = []
    for axis in range(len(box.sizes)):
        for begin, end in ((box.offset[axis], common.offset[axis]), (common.end[axis], box.end[axis])):
            if begin < end:
                offset = (*common.offset[:axis], begin, *box.offset[axis + 1 :])
                sizes = (*common.sizes[:axis], end - begin, *box.sizes[axis + 1 :])
                pieces.append(Box(offset, sizes))
    return pieces
