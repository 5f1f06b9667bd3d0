"""From the trainers' shards to the payloads: exactly the checkpoint's tensors, each where it is to be, in bounds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor

from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncOutline, SyncTarget
from r1hpc.sync.publisher import WeightPublisher
from r1hpc.train.actor import TrainActor
from tests.sync.beside import Packed, bits, packed, publisher, receive_all, unpacked
from tests.train.parity.run import Case, Grid, Models, on_every_rank
from tests.train.process_groups_soak import RebuildCase

BOUND = 1 << 16


@dataclass(frozen=True)
class Sync:
    """One sync that is tried."""

    form: SyncForm
    targets: tuple[SyncTarget, ...]
    full_check: bool = False


@dataclass(frozen=True)
class Seen:
    """What one rank saw of one sync."""

    outline: SyncOutline
    packed: Mapping[str, Packed]
    sizes: list[int]
    together: list[tuple[str, ...]]
    compared: list[str]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


WHOLE = (SyncTarget("engine0", (0, 1, 2, 3)),)
ROUTED = (SyncTarget("engine0", (0, 1), ep_size=2), SyncTarget("engine1", (3, 2), ep_size=2))
ALONE = (SyncTarget("engine1", (2,)),)
TWO_OF_FOUR = (SyncTarget("engine1", (3, 1)),)
PAIR = (SyncTarget("engine0", (0, 1)),)
FIRST = (SyncTarget("engine0", (0,)),)
SYNCS = [
    Sync(SyncForm.FP8, WHOLE),
    Sync(SyncForm.FP8, ROUTED),
    Sync(SyncForm.PLAIN, ALONE, full_check=True),
    Sync(SyncForm.DEQUANTIZED, ALONE),
    Sync(SyncForm.FP8, TWO_OF_FOUR),
]


@pytest.fixture(scope="module")
def original(released: Path) -> dict[str, Tensor]:
    """The released tensors, less the prediction layer."""
    weight_map = json.loads((released / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        with safe_open(released / file, "pt") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    return {name: tensor for name, tensor in found.items() if not name.startswith("model.layers.4.")}


@pytest.fixture(scope="module")
def seen(converted: Models, tmp_path_factory: pytest.TempPathFactory) -> list[list[Seen]]:
    """[sync][rank], of four ranks at TP2 PP2 EP2."""

    def work(actor: TrainActor) -> list[Seen]:
        senders = {form: publisher(actor, form, BOUND) for form in SyncForm}
        actor.sleep()  # the source is the host's copy
        return [_seen(senders[sync.form], sync) for sync in SYNCS]

    ranks = on_every_rank(Case(Grid(tp=2, pp=2, ep=2)), converted, tmp_path_factory.mktemp("ranks"), work)
    return [
        [replace(of_rank, tensors=unpacked(of_rank.packed)) for of_rank in ranks] for ranks in zip(*ranks, strict=True)
    ]


def _seen(sender: WeightPublisher, sync: Sync) -> Seen:
    outline, receiver = receive_all(sender, sync.targets, sync.full_check)
    return Seen(outline, packed(receiver.tensors), receiver.sizes, receiver.together, receiver.compared)


def test_every_courier_of_an_engine_without_expert_parallelism_gets_the_released_bytes(
    seen: list[list[Seen]], original: Mapping[str, Tensor]
) -> None:
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in original.values()) > 50
    for rank in seen[0]:
        assert_released(rank.tensors, original)


def test_an_engine_beside_half_of_the_ranks_is_given_all_and_the_others_nothing(
    seen: list[list[Seen]], original: Mapping[str, Tensor]
) -> None:
    for rank, found in enumerate(seen[4]):
        assert_released(found.tensors, original if rank in (1, 3) else {})


def test_experts_go_only_where_they_are_served(seen: list[list[Seen]], original: Mapping[str, Tensor]) -> None:
    def served(name: str, half: int) -> bool:
        return ".mlp.experts." not in name or int(name.split(".experts.")[1].split(".")[0]) // 2 == half

    # Engine 1 counts its ranks 3, 2: the courier 3 stands beside its rank 0.
    for rank, half in enumerate([0, 1, 1, 0]):
        assert_released(seen[1][rank].tensors, {name: t for name, t in original.items() if served(name, half)})
    # Two experts of three layers less: three matrices [160, 192] and their 2 x 2 scales, each from a multiple of 256.
    spared = seen[0][0].outline.bytes_per_gpu - seen[1][0].outline.bytes_per_gpu
    assert spared == 2 * 3 * 3 * (160 * 192 + 256)


def test_one_engine_alone_is_sent_the_trained_values(seen: list[list[Seen]], original: Mapping[str, Tensor]) -> None:
    assert [bool(rank.tensors) for rank in seen[2]] == [False, False, True, False]
    values = dequantized(original)
    found = seen[2][2].tensors
    assert found.keys() == values.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], values[name].float()) for name in values)


def test_dequantized_weights_are_what_fp8_stands_for(seen: list[list[Seen]], original: Mapping[str, Tensor]) -> None:
    values = dequantized(original)
    found = seen[3][2].tensors
    assert found.keys() == values.keys()
    assert found["model.layers.1.self_attn.q_a_proj.weight"].dtype == torch.bfloat16
    assert found["model.norm.weight"].dtype == torch.float32
    assert all(torch.equal(found[name].float(), values[name].float()) for name in values)


def test_buckets_are_bounded_but_for_a_single_larger_tensor(seen: list[list[Seen]]) -> None:
    for sync in seen:
        for rank in sync:
            assert max(rank.sizes, default=0) <= rank.outline.bucket_bytes
            for size, names in zip(rank.sizes, rank.together, strict=True):
                assert size <= BOUND or len(_weights(names)) <= 3
            assert sum(rank.sizes) <= rank.outline.bytes_per_gpu
        assert max(sum(size > 0 for size in rank.sizes) for rank in sync) > 10


def test_what_the_engine_fuses_travels_together(seen: list[list[Seen]]) -> None:
    for rank in (rank for sync in seen for rank in sync):
        for names in rank.together:
            have = set(names)
            for name in names:
                assert all(partner in have for partner in _partners(name) if partner in rank.tensors), name


def test_the_bytes_that_are_announced_are_those_that_come(seen: list[list[Seen]]) -> None:
    for sync in seen:
        assert max(sum(rank.sizes) for rank in sync) == sync[0].outline.bytes_per_gpu
        assert len({rank.outline for rank in sync}) == 1


def test_samples_are_compared_afterwards_and_all_weights_on_demand(seen: list[list[Seen]]) -> None:
    sampled = seen[0][0]
    assert len(sampled.outline.samples) == 8
    assert set(_weights(sampled.compared)) == set(sampled.outline.samples)
    # The next sync of the same publisher takes others.
    assert not set(seen[0][0].outline.samples) & set(seen[1][0].outline.samples)
    assert Counter(seen[2][2].compared) == Counter(seen[2][2].tensors.keys())


def assert_released(found: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> None:
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        if tensor.dtype == torch.bfloat16:  # not quantised: trained, and sent, in float32
            assert torch.equal(found[name], tensor.float()), name
        else:
            assert found[name].dtype == tensor.dtype, name
            assert torch.equal(bits(found[name]), bits(tensor)), name


def dequantized(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the definition of the format, without our own code."""
    values = {}
    for name, tensor in original.items():
        if name.endswith("_scale_inv"):
            continue
        if (scale := original.get(f"{name}_scale_inv")) is not None:
            blocks = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
            tensor = (tensor.float() * blocks[: tensor.shape[0], : tensor.shape[1]]).bfloat16()
        values[name] = tensor
    return values


def _weights(names: list[str] | tuple[str, ...]) -> list[str]:
    return [name for name in names if not name.endswith("_scale_inv")]


def _partners(name: str) -> list[str]:
    swaps = [("q_a_proj", "kv_a_proj_with_mqa"), ("gate_proj", "up_proj")]
    if ".mlp.experts." in name:
        swaps += [("gate_proj", "down_proj"), ("up_proj", "down_proj")]
    both = [*swaps, *((b, a) for a, b in swaps)]
    swapped = [name.replace(f".{a}.", f".{b}.") for a, b in both if f".{a}." in name]
    scales = [name + "_scale_inv"] if name.endswith("weight") else [name.removesuffix("_scale_inv")]
    return swapped + scales


def test_a_sync_of_a_trainer_without_groups_makes_its_own_and_leaves_none(converted: Models, tmp_path: Path) -> None:
    def work(actor: TrainActor) -> list[tuple[Seen, Seen, int]]:
        kept = publisher(actor, SyncForm.PLAIN, BOUND)
        alone = publisher(actor, SyncForm.PLAIN, BOUND, keep_groups=False)
        syncs = [Sync(SyncForm.PLAIN, targets) for targets in (PAIR, FIRST, PAIR)]
        expected = [_seen(kept, sync) for sync in syncs]
        actor.sleep()
        before = len(dist.distributed_c10d._world.pg_map)
        found = []
        for sync, seen in zip(syncs, expected, strict=True):
            same = _seen(alone, sync)
            found.append((seen, same, len(dist.distributed_c10d._world.pg_map) - before))
        actor.wake()
        return found

    ranks = on_every_rank(RebuildCase(Grid(tp=2)), converted, tmp_path, work)
    for expected, found, left in (sync for rank in ranks for sync in rank):
        assert left == 0
        assert found.sizes == expected.sizes
        assert found.packed == expected.packed
    assert [[bool(sync[0].packed) for sync in rank] for rank in ranks] == [[True, True, True], [True, False, True]]
