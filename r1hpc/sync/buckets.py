"""How the tensors are packed: buckets bounded for every rank, segments in them, and where each tensor lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

from r1hpc.checkpoint.names import TensorName
from r1hpc.sync.catalog import Assembly
from r1hpc.sync.encoding import SentTensor, sent_tensors
from r1hpc.sync.form import SyncForm

ALIGNMENT = 256
"""Bytes; of every tensor in a payload. Views of any dtype, and the widest loads of a GPU, need no more."""

_TRAVEL_TOGETHER = {
    "q_a_proj": "qkv_a",
    "kv_a_proj_with_mqa": "qkv_a",
    "gate_proj": "mlp",
    "up_proj": "mlp",
}
"""Weights of a layer that SGLang joins into one: it drops a half whose other half is not in the same call."""


@dataclass(frozen=True)
class Packed:
    """A tensor and where it begins in its segment."""

    sent: SentTensor
    begin: int


@dataclass(frozen=True)
class Item:
    """One weight in a segment."""

    assembly: Assembly
    tensors: tuple[Packed, ...]


@dataclass(frozen=True)
class Segment:
    """Weights of one assembler that go to the same couriers, as one run of bytes."""

    assembler: int
    couriers: tuple[int, ...]
    items: tuple[Item, ...]
    size: int


@dataclass(frozen=True)
class Bucket:
    """What the couriers are given at once, and hand over."""

    segments: tuple[Segment, ...]

    def of(self, courier: int) -> Iterator[tuple[int, Segment]]:
        """The segments of this courier's payload and where each begins in it."""
        begin = 0
        for segment in self.segments:
            if courier in segment.couriers:
                yield begin, segment
                begin += segment.size


def payload_sizes(bucket: Bucket) -> Counter[int]:
    """Bytes that the bucket has for each courier."""
    sizes: Counter[int] = Counter()
    for segment in bucket.segments:
        for courier in segment.couriers:
            sizes[courier] += segment.size
    return sizes


def pack(
    assemblies: Sequence[Assembly], form: SyncForm, to: Callable[[TensorName], tuple[int, ...]], bucket_bytes: int
) -> tuple[Bucket, ...]:
    """Buckets that all assemblers work on. No rank is given, or puts together, more than `bucket_bytes` of one.

    What SGLang fuses stays together; tensors that cannot be parted and are larger have a bucket of their own.
    """
    buckets: list[Bucket] = []
    members: list[Assembly] = []
    load: Counter[tuple[str, int]] = Counter()
    for inseparable in _spread(list(_inseparable(assemblies))):
        adds = _load(inseparable, form, to)
        if members and any(load[place] + size > bucket_bytes for place, size in adds.items()):
            buckets.append(make_bucket(members, form, to))
            members, load = [], Counter()
        members += inseparable
        load.update(adds)
    if members:
        buckets.append(make_bucket(members, form, to))
    return tuple(_apart(buckets, bucket_bytes))


def _apart(buckets: list[Bucket], bucket_bytes: int) -> Iterator[Bucket]:
    """The same, but two larger than `bucket_bytes` never in a row if it can be helped: two payloads exist at once."""
    large, usual = list[Bucket](), list[Bucket]()
    for bucket in buckets:
        (large if max(payload_sizes(bucket).values()) > bucket_bytes else usual).append(bucket)
    while large or usual:
        if large:
            yield large.pop(0)
        if usual:
            yield usual.pop(0)


def make_bucket(assemblies: Sequence[Assembly], form: SyncForm, to: Callable[[TensorName], tuple[int, ...]]) -> Bucket:
    """One bucket of these tensors, whatever its size."""
    segments: dict[tuple[int, tuple[int, ...]], list[Assembly]] = {}
    for assembly in assemblies:
        segments.setdefault((assembly.assembler, to(assembly.name)), []).append(assembly)
    return Bucket(tuple(_segment(*ends, members, form) for ends, members in segments.items()))


def _segment(assembler: int, couriers: tuple[int, ...], members: Sequence[Assembly], form: SyncForm) -> Segment:
    items, begin = [], 0
    for assembly in members:
        tensors = []
        for sent in sent_tensors(assembly.name, assembly.dtype, form):
            tensors.append(Packed(sent, begin))
            begin += aligned(sent.size_bytes)
        items.append(Item(assembly, tuple(tensors)))
    return Segment(assembler, couriers, tuple(items), begin)


def _load(
    members: Sequence[Assembly], form: SyncForm, to: Callable[[TensorName], tuple[int, ...]]
) -> Counter[tuple[str, int]]:
    """Bytes that these tensors bring to each rank: as the one that puts together, as one that is given."""
    adds: Counter[tuple[str, int]] = Counter()
    for assembly in members:
        sent = sent_tensors(assembly.name, assembly.dtype, form)
        size = sum(aligned(tensor.size_bytes) for tensor in sent)
        adds["assembler", assembly.assembler] += size
        for courier in to(assembly.name):
            adds["courier", courier] += size
    return adds


def _inseparable(assemblies: Sequence[Assembly]) -> Iterator[list[Assembly]]:
    """Runs of tensors that have to be loaded in one call. A layer's fused ones follow one another but for norms."""
    for _, layer in groupby(assemblies, key=lambda assembly: (assembly.name.layer, assembly.name.expert)):
        groups: dict[str, list[Assembly]] = {}
        for assembly in layer:
            groups.setdefault(_group(assembly.name), []).append(assembly)
        yield from groups.values()


def _spread(groups: Sequence[list[Assembly]]) -> list[list[Assembly]]:
    """Each assembler's groups in their order, those of all merged by how far each one is with its own.

    A layer is put together by the ranks of its pipeline stage alone: layer by layer, the other stages would wait.
    """
    totals: Counter[int] = Counter()
    for group in groups:
        totals[group[0].assembler] += _elements(group)
    done: Counter[int] = Counter()
    progress = []
    for group in groups:
        assembler, size = group[0].assembler, _elements(group)
        # Where its middle is: everyone's first group would come before everyone's second.
        progress.append((done[assembler] + size / 2) / totals[assembler])
        done[assembler] += size
    return [groups[index] for index in sorted(range(len(groups)), key=progress.__getitem__)]


def _elements(group: Sequence[Assembly]) -> int:
    return sum(prod(assembly.name.shape) for assembly in group)


def _group(name: TensorName) -> str:
    if name.expert is not None:
        return "expert"
    module, _, projection = name.hf.removesuffix(".weight").rpartition(".")
    return f"{module}.{_TRAVEL_TOGETHER[projection]}" if projection in _TRAVEL_TOGETHER else name.hf


def aligned(size: int) -> int:
    """Bytes, with what aligns what comes next."""
    return -(-size // ALIGNMENT) * ALIGNMENT
