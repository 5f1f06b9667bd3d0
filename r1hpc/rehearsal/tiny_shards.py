"""Tensors into the safetensors files of a Hugging Face checkpoint, a file at a time, and their index."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json

MAX_SHARD_BYTES = 512 * 2**20
"""A file is in memory while it is made: more of them are taken where they would be larger than this."""


def plan_shards(sizes: Sequence[tuple[str, int]], least: int) -> list[list[str]]:
    """Names of the tensors in each of `least` files or more, in order and of about equal bytes.

    Files end wherever a tensor does, so a weight and its scales may be in two, as in the released checkpoint.
    Raises CheckpointError for `least` < 1 or more files than tensors.
    """
    if not 1 <= least <= len(sizes):
        raise CheckpointError(f"--shards {least}: the model has {len(sizes)} tensors; take 1 to {len(sizes)} files")
    total = sum(size for _, size in sizes)
    count = min(max(least, -(-total // MAX_SHARD_BYTES)), len(sizes))
    shards: list[list[str]] = [[]]
    written = 0
    for index, (name, size) in enumerate(sizes):
        full = written * count >= total * len(shards)
        needed = len(sizes) - index == count - len(shards)
        if shards[-1] and len(shards) < count and (full or needed):
            shards.append([])
        shards[-1].append(name)
        written += size
    return shards


def write_shards(directory: Path, plan: Sequence[Sequence[str]], tensors: Iterable[tuple[str, Tensor]]) -> int:
    """Write `tensors`, which come in the order of `plan`, and model.safetensors.index.json; returns their bytes."""
    weight_map: dict[str, str] = {}
    total_size = 0
    coming = iter(tensors)
    for number, names in enumerate(plan, 1):
        file = f"model-{number:05}-of-{len(plan):05}.safetensors"
        total_size += _write_shard(directory / file, names, coming)
        weight_map |= dict.fromkeys(names, file)
    publish_json(
        directory / "model.safetensors.index.json",
        {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))},
    )
    return total_size


def _write_shard(file: Path, names: Sequence[str], coming: Iterator[tuple[str, Tensor]]) -> int:
    # A function of its own, so that a file's tensors are gone from memory before the next file's come.
    shard = dict(islice(coming, len(names)))
    assert list(shard) == list(names), f"{file.name}: the tensors do not come in the order of the plan"
    try:
        # transformers refuses a file whose metadata does not name the framework.
        save_file(shard, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise CheckpointError(f"{file}: cannot be written ({error}); is there space on its disk?") from error
    # safetensors lets nobody but the owner read its files; as readable as their directory they are of use to others.
    file.chmod(stat.S_IMODE(file.parent.stat().st_mode) & 0o666)
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
    return sum(tensor.nbytes for tensor in shard.values())
