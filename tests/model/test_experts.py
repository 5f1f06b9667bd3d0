"""Grouped experts against a plain loop over experts: values, gradients, experts and ranks without tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.transformer import MLATransformerConfig
from torch import Tensor
from torch.nn.functional import linear, silu

from r1hpc.model import compat
from r1hpc.model.experts import ExpertSizeError, GroupedExperts
from tests.forked_ranks import fork_ranks
from tests.model.configs import tiny_config

HIDDEN, WIDTH = 128, 64
"""Of configs/models/tiny-r1."""


@dataclass(frozen=True)
class Group:
    """Stands in for a process group of which only size and this rank's place are asked."""

    members: int
    place: int

    def size(self) -> int:
        return self.members

    def rank(self) -> int:
        return self.place


@dataclass(frozen=True)
class Groups:
    ep: Group
    expt_dp: Group


def experts_of(
    config: MLATransformerConfig, local: int, ep: int = 1, ep_rank: int = 0, copy: int = 0
) -> GroupedExperts:
    return GroupedExperts(local, config, pg_collection=Groups(Group(ep, ep_rank), Group(2, copy)))


def plain(x: Tensor, counts: Sequence[int], probabilities: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Expert after expert."""
    outs, begin = [], 0
    for expert, count in enumerate(counts):
        rows = slice(begin, begin + count)
        gate, up = linear(x[rows], gate_up[expert]).chunk(2, dim=-1)
        outs.append(linear((silu(gate) * up * probabilities[rows, None]).to(x.dtype), down[expert]))
        begin += count
    return torch.cat(outs)


def gradients(dtype: torch.dtype, counts: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What GroupedExperts and the plain loop give for the same numbers, by name."""
    compat.prepare("cpu")
    torch.manual_seed(0)
    experts = experts_of(tiny_config(dtype=dtype), len(counts))
    with torch.no_grad():
        for weight in experts.parameters():
            weight.normal_(std=0.1)
    gate_up, down = (weight.detach().clone().requires_grad_() for weight in experts.parameters())
    x, of_out = torch.randn(2, sum(counts), HIDDEN).to(dtype)
    probabilities = torch.rand(sum(counts))
    mine, theirs = (
        {"x": x.clone().requires_grad_(), "probabilities": probabilities.clone().requires_grad_()} for _ in range(2)
    )
    out, bias = experts(mine["x"], torch.tensor(counts), mine["probabilities"])
    assert bias is None
    expected = plain(theirs["x"], counts, theirs["probabilities"], gate_up, down)
    found = {"out": out.detach()} | _backward(out, of_out, mine, *experts.parameters())
    return found, {"out": expected.detach()} | _backward(expected, of_out, theirs, gate_up, down)


def _backward(
    out: Tensor, of_out: Tensor, inputs: dict[str, Tensor], gate_up: Tensor, down: Tensor
) -> dict[str, Tensor]:
    # Transposed memory, as gradients may come: the kernels take rows.
    out.backward(of_out.t().contiguous().t())  # type: ignore[no-untyped-call]
    leaves = {**inputs, "gate_up": gate_up, "down": down}
    found = {}
    for name, leaf in leaves.items():
        assert leaf.grad is not None, f"{name} has no gradient"
        found[name] = leaf.grad
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.2e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("counts", [(3, 5, 2, 7), (4, 0, 9, 0), (0, 0, 0, 1), (0, 0, 0, 0)], ids=str)
def test_grouped_experts_are_a_loop_over_experts(dtype: torch.dtype, tolerance: float, counts: tuple[int, ...]) -> None:
    ((found, expected),) = fork_ranks(lambda _: gradients(dtype, counts), 1, 60)
    for name in ("out", "x", "probabilities", "gate_up", "down"):
        assert found[name].shape == expected[name].shape, name
        if expected[name].numel():
            scale = expected[name].abs().max().clamp(min=1e-30)
            assert ((found[name] - expected[name]).abs().max() / scale) < tolerance, name
    # An expert without tokens, and a rank without any, has zeros for its weights.
    for expert, count in enumerate(counts):
        assert bool(found["gate_up"][expert].any()) == bool(found["down"][expert].any()) == (count > 0)


def _cut() -> list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]]:
    """Key, whole shape, offset, local shape of every box of the third of four ranks; whether it is a view, in place."""
    compat.prepare("cpu")
    experts = experts_of(tiny_config(dtype=torch.bfloat16), 2, ep=4, ep_rank=2, copy=1)
    found = []
    for name, factory in experts.sharded_state_dict("mlp.experts.").items():
        assert isinstance(factory, ShardedTensorFactory)
        weight = experts.get_parameter(name.removeprefix("mlp.experts."))
        for value in (torch.randn(weight.shape), weight.data.normal_()):
            factory.data = value
            boxes = factory.build()
            merged = factory.merge_fn([box.data for box in boxes])
            assert merged.data_ptr() == value.data_ptr() and merged.shape == value.shape
            copied = factory.merge_fn([box.data.clone() for box in boxes])
            assert copied.data_ptr() != value.data_ptr() and copied.equal(merged)
        found += [_described(box, value) for box in boxes]
    return found


def _described(
    box: ShardedTensor, whole: Tensor
) -> tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    assert box.replica_id == (0, 0, 1)
    inside = box.data.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return box.key, tuple(box.global_shape), tuple(box.global_offset), tuple(box.local_shape), inside


def test_checkpoint_boxes_are_views_of_whole_experts_gate_above_up() -> None:
    (found,) = fork_ranks(lambda _: _cut(), 1, 60)
    fc1, fc2 = "mlp.experts.experts.linear_fc1.weight", "mlp.experts.experts.linear_fc2.weight"
    up, down = (8, 2 * WIDTH, HIDDEN), (8, HIDDEN, WIDTH)
    assert found == [
        (fc1, up, (4, 0, 0), (WIDTH, HIDDEN), True),
        (fc1, up, (4, WIDTH, 0), (WIDTH, HIDDEN), True),
        (fc1, up, (5, 0, 0), (WIDTH, HIDDEN), True),
        (fc1, up, (5, WIDTH, 0), (WIDTH, HIDDEN), True),
        (fc2, down, (4, 0, 0), (HIDDEN, WIDTH), True),
        (fc2, down, (5, 0, 0), (HIDDEN, WIDTH), True),
    ]


def _refused(dtype: torch.dtype) -> str | None:
    compat.prepare("cpu")
    try:
        experts_of(tiny_config(dtype=dtype, moe_intermediate_size=100), 2)
    except ExpertSizeError as error:
        return str(error)
    return None


def test_widths_that_the_kernels_cannot_load_are_refused_on_the_cpu_too() -> None:
    (refusal,) = fork_ranks(lambda _: _refused(torch.bfloat16), 1, 60)
    # 100 is a multiple of 4 (16 / 4 bytes) and none of 8 (16 / 2 bytes).
    assert refusal == (
        "experts with moe_intermediate_size 100 in bfloat16: must be a multiple of 8 (16 bytes / 2), or"
        " torch._grouped_mm refuses them; change the model's config.json"
    )
    assert fork_ranks(lambda _: _refused(torch.float32), 1, 60) == [None]
