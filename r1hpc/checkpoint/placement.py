"""Where a weight lies in a torch_dist checkpoint, under whichever of Megatron's spellings it was written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from r1hpc.checkpoint.boxes import Box
from r1hpc.checkpoint.names import TensorName

_EXPERTS = ".experts.experts."
_GATED = "linear_fc1.weight"


@dataclass(frozen=True)
class Place:
    """A Hugging Face tensor as a box of a stored one."""

    key: str
    shape: tuple[int, ...]
    """That the stored tensor must have."""
    box: Box

    def rows(self, first: int, count: int, num_axes: int) -> Box:
        """The box of some rows of the Hugging Face tensor, which has `num_axes` axes."""
        axis = len(self.shape) - num_axes
        offset, sizes = list(self.box.offset), list(self.box.sizes)
        offset[axis] += first
        sizes[axis] = count
        return Box(tuple(offset), tuple(sizes))


def places(name: TensorName, num_layers: int) -> Iterator[Place]:
    """Every place that the tensor may have, those of a checkpoint of ours first.

    num_layers: of the model without prediction layers; Megatron stacks equal layers where no layer differs from them.
    """
    box = Box(name.offset, name.box)
    keys = [name.key, *([name.te_key] if name.te_key else [])]
    for key in keys:
        yield Place(key, name.global_shape, box)
    alone = Box((0,) * len(name.shape), name.shape)
    for key in keys:
        if (single := _singleton(name, key)) is not None:
            yield Place(single, name.shape, alone)
    for key in keys:
        prefix = f"decoder.layers.{name.layer}."
        if name.layer is not None and key.startswith(prefix):
            stacked = Box((name.layer, *name.offset), (1, *name.box))
            yield Place("decoder.layers." + key.removeprefix(prefix), (num_layers, *name.global_shape), stacked)


def find_place(name: TensorName, num_layers: int, stored: Collection[str]) -> Place | None:
    """The tensor's place in a checkpoint that has the keys `stored`; null where it has none of its spellings."""
    return next((place for place in places(name, num_layers) if place.key in stored), None)


def _singleton(name: TensorName, key: str) -> str | None:
    """The key that Megatron's `singleton_local_shards` gives: each expert, each half of fc1 a tensor of its own."""
    if name.global_shape == name.shape:
        return None
    if name.expert is not None:
        key = key.replace(_EXPERTS, f"{_EXPERTS}{name.expert}.")
    if key.endswith(_GATED):
        rows = name.offset[-2]
        key += "_v" if rows else "_w"
    return key
