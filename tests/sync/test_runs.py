"""Weights of a segment that are quantised together: the bytes of each alone, and few launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r1hpc.checkpoint.fp8 import dequantize, quantize
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.errors import CheckpointError
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.sync.buckets import Segment, make_bucket
from r1hpc.sync.catalog import Assembly
from r1hpc.sync.form import SyncForm
from r1hpc.sync.runs import encode_run, runs

TINY = Path(__file__).resolve().parents[2] / "configs" / "models" / "tiny-r1" / "config.json"


@pytest.fixture(scope="module")
def names() -> list[TensorName]:
    """Of the last layer, which has experts; their matrices are not whole blocks."""
    shape = read_model_shape(TINY)
    return [name for name in tensors(replace(shape, num_mtp_layers=0)) if name.layer == shape.num_layers - 1]


def segment_of(names: list[TensorName], form: SyncForm, dtype: torch.dtype = torch.bfloat16) -> Segment:
    bucket = make_bucket([Assembly(name, dtype, 0, ()) for name in names], form, lambda name: (0,))
    (segment,) = bucket.segments
    return segment


def encoded(segment: Segment, form: SyncForm, weights: dict[str, Tensor]) -> tuple[dict[str, list[Tensor]], int]:
    """The tensors of each weight as they lie in the segment's bytes, and how many launches that took."""
    data = torch.full((segment.size,), 0xAB, dtype=torch.uint8)
    launches = 0
    for run in runs(segment, form):
        room = run.room(torch.empty(run.room_bytes, dtype=torch.uint8))
        for name, place in zip(run.names, room, strict=True):
            place.copy_(weights[name])
        encode_run(run, room, form, run.places(data)).check()
        launches += 1
    found = {
        item.assembly.name.hf: [
            data[p.begin : p.begin + p.sent.size_bytes].view(p.sent.dtype).view(p.sent.shape) for p in item.tensors
        ]
        for item in segment.items
    }
    return found, launches


def random_weights(names: list[TensorName], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name.hf: torch.randn(name.shape, generator=generator).to(dtype) for name in names}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", [SyncForm.FP8, SyncForm.DEQUANTIZED])
def test_each_weight_has_the_bytes_that_it_has_alone(
    names: list[TensorName], form: SyncForm, dtype: torch.dtype
) -> None:
    weights = random_weights(names, dtype)
    found, _ = encoded(segment_of(names, form, dtype), form, weights)
    quantized = [name.hf for name in names if name.quantized]
    assert len(quantized) > 20
    for name in quantized:
        codes, scales = quantize(weights[name])
        expected = [codes, scales] if form is SyncForm.FP8 else [dequantize(codes, scales)]
        for one, other in zip(found[name], expected, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), name


def test_what_is_not_quantised_is_left_as_it_is(names: list[TensorName]) -> None:
    found, _ = encoded(segment_of(names, SyncForm.FP8), SyncForm.FP8, random_weights(names))
    plain = [found[name.hf][0] for name in names if not name.quantized]
    assert plain
    assert all(tensor.view(torch.uint8).eq(0xAB).all() for tensor in plain)


def test_experts_are_quantised_in_as_many_launches_as_they_have_matrices(names: list[TensorName]) -> None:
    experts = [name for name in names if name.expert is not None]
    _, launches = encoded(segment_of(experts, SyncForm.FP8), SyncForm.FP8, random_weights(experts))
    assert launches == 3 < len(experts) // 2


def test_an_uneven_distance_parts_a_run(names: list[TensorName]) -> None:
    experts = [name for name in names if name.expert is not None]
    there = [name for name in experts if name.expert != 1]
    found, launches = encoded(segment_of(there, SyncForm.FP8), SyncForm.FP8, random_weights(there))
    assert len(found) == len(there)
    norms = [name for name in names if not name.quantized]
    parted = [*experts[:6], *norms, *experts[6:]]
    weights = random_weights(parted)
    found, more = encoded(segment_of(parted, SyncForm.FP8), SyncForm.FP8, weights)
    assert more > launches
    for name in experts:
        assert torch.equal(found[name.hf][0].view(torch.uint8), quantize(weights[name.hf])[0].view(torch.uint8))


def test_a_weight_that_is_not_finite_is_named_alone(names: list[TensorName]) -> None:
    experts = [name for name in names if name.expert is not None]
    weights = random_weights(experts)
    sick = experts[-2].hf
    weights[sick][1, 2] = torch.nan
    with pytest.raises(CheckpointError, match=rf"^{sick}: nan at \[1, 2\]; only finite"):
        encoded(segment_of(experts, SyncForm.FP8), SyncForm.FP8, weights)
