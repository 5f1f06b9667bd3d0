"""Payloads of a sync of DeepSeek-R1 on 128 GPUs: bounded, and made by all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
import torch

from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.plan import read_model_shape
from r1hpc.plan.sync import PAYLOAD_FILL, SLOWEST_READER
from r1hpc.sync.buckets import Bucket, pack, payload_sizes
from r1hpc.sync.catalog import Assembly
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncTarget
from r1hpc.sync.routes import Routes

LAST_LAYERS = (15, 31, 47, 60)
"""Of the pipeline stages of configs/r1.yaml; each has 32 ranks, of 8 experts a layer each."""
LIMIT = 512 * 2**20
EMBEDDING = 129_280 * 7168 * 2


@pytest.fixture(scope="module")
def assemblies() -> tuple[Assembly, ...]:
    """Experts where they lie, all else dealt evenly among the ranks of its stage."""
    shape = read_model_shape(Path(__file__).parents[2] / "configs" / "models" / "deepseek-r1" / "config.json")
    dealt: Counter[int] = Counter()
    found = []
    for name in tensors(replace(shape, num_mtp_layers=0)):
        stage = stage_of(name)
        ranks = range(32 * stage, 32 * stage + 32)
        rank = ranks[name.expert // 8] if name.expert is not None else min(ranks, key=dealt.__getitem__)
        dealt[rank] += prod(name.shape)
        found.append(Assembly(name, torch.float32 if name.float32 else torch.bfloat16, rank, ()))
    return tuple(found)


@pytest.fixture(scope="module")
def buckets(assemblies: Sequence[Assembly]) -> tuple[Bucket, ...]:
    engines = (SyncTarget("0", tuple(range(64)), 64), SyncTarget("1", tuple(range(64, 128)), 64))
    return pack(assemblies, SyncForm.FP8, Routes(engines, 256).to, LIMIT)


def stage_of(name: TensorName) -> int:
    if name.layer is None:
        return 0 if "embed" in name.hf else 3
    return next(stage for stage, last in enumerate(LAST_LAYERS) if name.layer <= last)


def put_together(bucket: Bucket) -> Counter[int]:
    """Bytes in bf16 by the rank that fetches and quantises them."""
    bytes_of: Counter[int] = Counter()
    for segment in bucket.segments:
        bytes_of[segment.assembler] += sum(2 * prod(item.assembly.name.shape) for item in segment.items)
    return bytes_of


def test_every_tensor_travels_once(assemblies: Sequence[Assembly], buckets: Sequence[Bucket]) -> None:
    sent = [item.assembly.name.hf for bucket in buckets for segment in bucket.segments for item in segment.items]
    assert sorted(sent) == sorted(assembly.name.hf for assembly in assemblies)


def test_no_gpu_is_given_more_than_a_bucket_but_for_embedding_and_head(buckets: Sequence[Bucket]) -> None:
    sizes = [max(payload_sizes(bucket).values()) for bucket in buckets]
    assert sorted(size for size in sizes if size > LIMIT) == [EMBEDDING, EMBEDDING]
    # As r1hpc.plan.sync says of R1.
    assert len(buckets) == 74
    assert all(min(pair) <= LIMIT for pair in pairwise(sizes))
    assert sum(sizes) == pytest.approx(29.3e9 / PAYLOAD_FILL, rel=0.02)


def test_all_stages_work_on_every_payload(buckets: Sequence[Bucket]) -> None:
    """Each rank fetches 10.5 GB; were it a stage after the other, the slowest of each payload would add to 61 GB."""
    work = [put_together(bucket) for bucket in buckets]
    assert sum(bytes_of.total() for bytes_of in work) / 128 == pytest.approx(10.5e9, rel=0.01)
    assert sum(max(bytes_of.values()) for bytes_of in work) == pytest.approx(10.5e9 * SLOWEST_READER, rel=0.03)
    stages = [len({rank // 32 for rank in bytes_of}) for bytes_of in work]
    # Embedding and head travel alone, and at the ends are what is left of some.
    assert stages.count(4) > 0.9 * len(stages)


def test_experts_of_a_layer_stay_in_their_order_at_each_rank(buckets: Sequence[Bucket]) -> None:
    order: dict[int, list[tuple[int, int]]] = {}
    for bucket in buckets:
        for segment in bucket.segments:
            for name in (item.assembly.name for item in segment.items):
                if name.expert is not None and name.layer is not None:
                    order.setdefault(segment.assembler, []).append((name.layer, name.expert))
    # A rank has several segments in a bucket, one for each set of couriers.
    assert all(before[0] <= after[0] for places in order.values() for before, after in pairwise(places))
