"""The inner optimizer against torch's own AdamW in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from r1hpc.plan.assumptions import ADAM_BYTES, ADAM_STAGING_BYTES
from r1hpc.train.host_adam import PIECE_ELEMENTS, HostAdam
from r1hpc.train.staging import staging_specs

SIZES = (1000, 64, 7, 333)
BETAS, EPS, DECAY, LR = (0.9, 0.98), 1e-8, 0.1, 1e-2
STEPS = 5


@dataclass(frozen=True)
class Variant:
    """How the steps are carried out; it must make no difference."""

    offload: bool = True
    overlap: bool = True
    piece_elements: int = PIECE_ELEMENTS


VARIANTS = [
    Variant(offload=False, overlap=False),
    Variant(overlap=False),
    Variant(),
    Variant(piece_elements=16),
    Variant(piece_elements=112),
    Variant(offload=False, piece_elements=32),
]


def test_one_step_by_hand() -> None:
    """m / sqrt(v), each corrected, is the gradient's sign at the first step: 1 - 0.1 * 0.2 * 1 - 0.1 = 0.88."""
    adam = _adam([torch.tensor([1.0])], torch.float32, Variant(), decay=0.2)
    _step(adam, [torch.tensor([0.5])], lr=0.1)
    (shard,) = adam.shards
    assert float(shard.master) == pytest.approx(0.88, abs=1e-7)
    assert float(shard.param) == float(shard.master)
    assert (float(shard.exp_avg), float(shard.exp_avg_sq)) == pytest.approx((0.05, 0.005), rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_float32_parameters_follow_torchs_adamw(variant: Variant) -> None:
    values, gradients = _values(), _gradients()
    adam = _adam(values, torch.float32, variant)
    for of_step in gradients:
        _step(adam, of_step)
    expected = _torch_adamw(values, gradients)
    for shard, reference in zip(adam.shards, expected, strict=True):
        assert float((shard.param - reference).abs().max() / reference.abs().max()) < 1e-7
        assert torch.equal(shard.master, shard.param)


def test_bfloat16_parameters_are_the_rounded_masters_of_the_same_float32_run() -> None:
    values = [value.bfloat16().float() for value in _values()]
    rounded = _adam(values, torch.bfloat16, Variant(piece_elements=48))
    exact = _adam(values, torch.float32, Variant(offload=False))
    moved = False
    for of_step in _gradients():
        _step(rounded, of_step, lr=1e-5)
        _step(exact, of_step, lr=1e-5)
        for low, high in zip(rounded.shards, exact.shards, strict=True):
            assert torch.equal(low.master, high.master)
            assert torch.equal(low.param, high.master.bfloat16())
            moved |= not torch.equal(low.master, low.param.float())
    assert moved  # the masters hold what bfloat16 loses


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_bits_do_not_depend_on_place_overlap_or_size_of_pieces(variant: Variant) -> None:
    values, gradients = _values(), _gradients()
    one, other = _adam(values, torch.bfloat16, Variant()), _adam(values, torch.bfloat16, variant)
    for of_step in gradients:
        _step(one, of_step)
        _step(other, of_step)
    for mine, theirs in zip(one.shards, other.shards, strict=True):
        for name in ("param", "master", "exp_avg", "exp_avg_sq"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offload", [False, True])
def test_a_step_with_learning_rate_zero_changes_no_bit_of_the_weights(dtype: torch.dtype, offload: bool) -> None:
    values = [value.to(dtype) for value in _values()]
    values[0][::3] = -0.0
    before = [value.clone() for value in values]
    adam = _adam(values, dtype, Variant(offload=offload))
    for of_step in _gradients():
        _step(adam, of_step, lr=0.0)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    for shard, old in zip(adam.shards, before, strict=True):
        assert torch.equal(shard.param.view(bits), old.view(bits))
        assert torch.equal(shard.master.to(dtype).view(bits), old.view(bits))
        assert float(shard.exp_avg.abs().sum()) > 0


def test_masters_that_are_not_the_parameters_are_counted_and_taken_anew() -> None:
    adam = _adam(_values(), torch.bfloat16, Variant(piece_elements=64))
    assert [adam.differing(shard) for shard in adam.shards] == [0, 0, 0, 0]
    with torch.no_grad():
        adam.shards[0].param[[3, 700]] += 1  # as loading other weights does
        adam.shards[3].param[332] = -adam.shards[3].param[332]
    assert [adam.differing(shard) for shard in adam.shards] == [2, 0, 0, 1]
    adam.masters_from_parameters()
    assert [adam.differing(shard) for shard in adam.shards] == [0, 0, 0, 0]
    assert torch.equal(adam.shards[0].master, adam.shards[0].param.float())


def test_groups_decay_by_their_own_and_count_steps_together() -> None:
    params = [torch.ones(3), torch.ones(3)]
    groups = [{"params": [params[0]], "weight_decay": 0.5}, {"params": [params[1]], "weight_decay": 0.0}]
    adam = HostAdam(groups, betas=BETAS, eps=EPS, offload=True)
    adam.allocate()
    _step(adam, [torch.zeros(3), torch.zeros(3)], lr=0.1)
    assert params[0].tolist() == pytest.approx([0.95] * 3)
    assert params[1].tolist() == [1.0] * 3
    assert [group["step"] for group in adam.param_groups] == [1, 1]


def test_state_takes_twelve_bytes_a_parameter_and_staging_is_bounded() -> None:
    elements = 1000 * 64
    beside = _adam([torch.zeros(elements)], torch.bfloat16, Variant(offload=False))
    assert beside.state_bytes == 12 * elements
    # two gradients and two results of 4 bytes a value, 640 values each
    host = _adam([torch.zeros(elements)], torch.bfloat16, Variant(piece_elements=640))
    assert host.state_bytes == 12 * elements + 4 * 4 * 640


def test_the_plan_counts_the_state_and_the_staging_buffers_of_both_optimizers_of_a_gpu() -> None:
    assert sum(spec.size_bytes for spec in staging_specs(PIECE_ELEMENTS)) * 2 == ADAM_STAGING_BYTES
    elements = 1000 * 64
    host = _adam([torch.zeros(elements)], torch.bfloat16, Variant())
    # The pieces of so few are smaller: one of all.
    assert host.state_bytes == ADAM_BYTES * elements + 4 * 4 * elements


def test_a_rank_without_shards_steps() -> None:
    adam = _adam([], torch.bfloat16, Variant())
    _step(adam, [])
    assert (adam.state_bytes, adam.param_groups[0]["step"]) == (0, 1)


def test_a_missing_or_rounded_gradient_is_not_taken() -> None:
    adam = _adam([torch.zeros(4)], torch.bfloat16, Variant())
    with pytest.raises(AssertionError, match="bfloat16"):
        _step(adam, [torch.zeros(4, dtype=torch.bfloat16)])


def _adam(values: Sequence[Tensor], dtype: torch.dtype, variant: Variant, decay: float = DECAY) -> HostAdam:
    params = [value.clone().to(dtype) for value in values]
    adam = HostAdam(
        [{"params": params, "weight_decay": decay}],
        betas=BETAS,
        eps=EPS,
        offload=variant.offload,
        overlap=variant.overlap,
        piece_elements=variant.piece_elements,
    )
    adam.allocate()
    return adam


def _step(adam: HostAdam, gradients: Sequence[Tensor], lr: float = LR) -> None:
    for shard, gradient in zip(adam.shards, gradients, strict=True):
        shard.param.decoupled_grad = gradient  # type: ignore[attr-defined]
    for group in adam.param_groups:
        group["lr"] = lr
    adam.step()


def _values() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(size) for size in SIZES]


def _gradients() -> list[list[Tensor]]:
    torch.manual_seed(2)
    return [[torch.randn(size) for size in SIZES] for _ in range(STEPS)]


def _torch_adamw(values: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    params = [torch.nn.Parameter(value.clone()) for value in values]
    reference = torch.optim.AdamW(params, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, foreach=False, fused=False)
    for of_step in gradients:
        for param, gradient in zip(params, of_step, strict=True):
            param.grad = gradient.clone()
        reference.step()
    return [param.detach() for param in params]
