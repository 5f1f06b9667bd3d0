"""The sharded optimizer on the tiny model: against torch's AdamW and clipping on one process."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from r1hpc.config.training import OptimizerConfig
from r1hpc.model.parallel import Layout
from r1hpc.train.gradients import checkpoint_names
from r1hpc.train.optimizer import OptimizerError, TrainOptimizer, build_optimizer, wrap
from tests.train.trained_model import EXPERTS, OPTIMIZER, give_gradients, on_ranks

STEPS = 3
SMALL_PIECES = 512
"""The largest parameter is 100 of them."""


@dataclass(frozen=True)
class Trained:
    """A rank after some steps."""

    ep_rank: int
    weights: Mapping[str, Tensor]
    """Of this rank, by checkpoint name."""
    norms: list[float]
    ranges: list[tuple[str, int, int]]
    """Name, begin, end of each shard."""


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(1, Layout()), (2, Layout()), (4, Layout()), (4, Layout(ep=2)), (2, Layout(pp=2, first_layers=1))],
    ids=["one process", "dp2", "dp4", "dp4 ep2", "pp2, a stage without experts"],
)
def test_three_steps_are_torchs_adamw_and_clipping_of_the_whole_model(
    tmp_path: Path, ranks: int, layout: Layout
) -> None:
    (start,) = on_ranks(_weights_and_gradients, tmp_path)
    expected, norms = _reference(*start)
    trained = on_ranks(lambda ddp: _train(ddp, offload=True), tmp_path, ranks, layout)
    for rank in trained:
        assert rank.norms == pytest.approx(norms, rel=1e-6)
        assert norms[0] > 10 * OPTIMIZER.clip_grad  # clipping matters
        for name, weight in rank.weights.items():
            whole = expected[name]
            mine = whole.chunk(layout.ep)[rank.ep_rank] if EXPERTS in name else whole
            assert float((weight - mine).abs().max() / whole.abs().max()) < 1e-6, name
    assert {name for rank in trained for name in rank.weights} == set(expected)


def test_shards_are_every_value_of_every_parameter_once(tmp_path: Path) -> None:
    ranks = on_ranks(lambda ddp: _train(ddp, offload=False), tmp_path, ranks=4, layout=Layout(ep=2))
    parts: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for rank in ranks:
        for name, begin, end in rank.ranges:
            parts.setdefault((name, rank.ep_rank if EXPERTS in name else 0), []).append((begin, end))
    sizes = {
        (name, rank.ep_rank if EXPERTS in name else 0): weight.numel()
        for rank in ranks
        for name, weight in rank.weights.items()
    }
    assert parts.keys() == sizes.keys()
    for key, ranges in parts.items():
        bounds = sorted(ranges)
        assert (bounds[0][0], bounds[-1][1]) == (0, sizes[key])
        assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    assert max(len(ranges) for ranges in parts.values()) > 1  # some parameter lies across ranks


def test_in_bfloat16_bits_do_not_depend_on_offload_and_every_rank_has_the_rounded_masters(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel, offload: bool) -> tuple[dict[str, Tensor], list[tuple[str, bool]]]:
        optimizer = build_optimizer(ddp, OPTIMIZER, offload, piece_elements=SMALL_PIECES)
        for step in range(STEPS):
            _step(ddp, optimizer, step, lr=1e-4)
        rounded = [(shard.name, torch.equal(shard.weights, shard.master.bfloat16())) for shard in optimizer.shards()]
        return _weights(ddp), rounded

    results = [
        result
        for offload in (False, True)
        for result in on_ranks(lambda ddp, on=offload: work(ddp, on), tmp_path, ranks=2, dtype=torch.bfloat16)  # type: ignore[misc]
    ]
    first = results[0][0]
    assert first["decoder.layers.0.self_attention.linear_proj.weight"].dtype == torch.bfloat16
    for weights, rounded in results:
        assert all(torch.equal(weights[name], first[name]) for name in first)
        assert rounded
        assert [name for name, same in rounded if not same] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_with_learning_rate_zero_changes_no_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    def work(ddp: DistributedDataParallel) -> list[str]:
        optimizer = build_optimizer(ddp, OPTIMIZER, offload=True, piece_elements=SMALL_PIECES)
        with torch.no_grad():
            for param in ddp.module.parameters():
                param.view(-1)[::5] = -0.0
        optimizer.masters_from_parameters()
        optimizer.check_masters()
        before = _weights(ddp)
        _step(ddp, optimizer, 0, lr=0.0)
        optimizer.check_masters()
        after = _weights(ddp)
        assert optimizer.num_steps == 1
        return [name for name in before if not torch.equal(_bits(before[name]), _bits(after[name]))]

    assert on_ranks(work, tmp_path, ranks=2, dtype=dtype) == [[], []]


def test_weights_loaded_without_masters_are_found_on_every_rank_before_a_step(tmp_path: Path) -> None:
    changed = "decoder.layers.2.mlp.router.weight"

    def work(ddp: DistributedDataParallel) -> tuple[str, str]:
        optimizer = build_optimizer(ddp, OPTIMIZER, offload=True)
        optimizer.check_masters()
        with torch.no_grad():
            dict(ddp.module.named_parameters())[changed].add_(1)
        with pytest.raises(OptimizerError) as caught:
            optimizer.check_masters()
        optimizer.masters_from_parameters()
        optimizer.check_masters()
        before = _weights(ddp)[changed]
        _step(ddp, optimizer, 0, lr=0.0)
        assert torch.equal(_weights(ddp)[changed], before)
        return str(caught.value), changed

    (first, name), (second, _) = on_ranks(work, tmp_path, ranks=2, dtype=torch.bfloat16)
    assert first == second
    assert f"{name}: " in first
    assert "masters_from_parameters" in first
    assert first.count(".weight") in (1, 2)  # one shard or two, of this parameter only


def test_a_norm_beyond_float32_changes_nothing_anywhere(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> tuple[str, bool, int]:
        optimizer = build_optimizer(ddp, OPTIMIZER, offload=True)
        before = _weights(ddp)
        for param in ddp.module.parameters():
            param.main_grad.fill_(1e30)
        ddp.finish_grad_sync()
        with pytest.raises(OptimizerError) as caught:
            optimizer.step(1e-3)
        after = _weights(ddp)
        return str(caught.value), all(torch.equal(before[name], after[name]) for name in before), optimizer.num_steps

    first, second = on_ranks(work, tmp_path, ranks=2)
    assert first == second
    assert "gradient norm is inf" in first[0]
    assert first[1:] == (True, 0)


def test_without_clipping_the_norm_is_told_and_gradients_are_left_alone(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> tuple[float, float, bool]:
        optimizer = build_optimizer(ddp, OPTIMIZER.model_copy(update={"clip_grad": 0.0}), offload=False)
        optimizer.zero_grad()
        give_gradients(ddp, step=0)
        gradients = {name: param.main_grad.clone() for name, param in ddp.module.named_parameters()}
        outcome = optimizer.step(1e-3)
        same = all(torch.equal(param.main_grad, gradients[name]) for name, param in ddp.module.named_parameters())
        return outcome.grad_norm, outcome.clip_coefficient, same

    ((norm, coefficient, same),) = on_ranks(work, tmp_path)
    assert (coefficient, same) == (1.0, True)
    assert norm > 100


def test_steps_are_counted_on_from_a_checkpoints_number(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> list[int]:
        optimizer = build_optimizer(ddp, OPTIMIZER, offload=True)
        counts = [optimizer.num_steps]
        optimizer.num_steps = 41
        _step(ddp, optimizer, 0, lr=1e-3)
        return [*counts, optimizer.num_steps]

    assert on_ranks(work, tmp_path, ranks=2) == [[0, 42], [0, 42]]


def test_gradients_are_float32_and_nothing_scales_them_on_the_way(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> tuple[set[float], set[torch.dtype], str]:
        buffers = ddp.buffers + ddp.expert_parallel_buffers
        ddp.module.config.calculate_per_token_loss = False
        with pytest.raises(AssertionError) as caught:
            wrap(ddp.module)
        return (
            {buffer.gradient_scaling_factor for buffer in buffers},
            {param.main_grad.dtype for param in ddp.module.parameters()},
            str(caught.value),
        )

    for factors, dtypes, refusal in on_ranks(work, tmp_path, ranks=2, dtype=torch.bfloat16):
        assert (factors, dtypes) == ({1.0}, {torch.float32})
        assert "divides gradients by the data-parallel size" in refusal


def _train(ddp: DistributedDataParallel, offload: bool) -> Trained:
    optimizer = build_optimizer(ddp, OPTIMIZER, offload, piece_elements=SMALL_PIECES)
    norms = [_step(ddp, optimizer, step, OPTIMIZER.lr) for step in range(STEPS)]
    names = checkpoint_names(ddp.module)
    return Trained(
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
        weights=_weights(ddp),
        norms=norms,
        ranges=[(names[shard.name][0], shard.begin, shard.end) for shard in optimizer.shards()],
    )


def _step(ddp: DistributedDataParallel, optimizer: TrainOptimizer, step: int, lr: float) -> float:
    optimizer.zero_grad()
    give_gradients(ddp, step)
    return optimizer.step(lr).grad_norm


def _weights(ddp: DistributedDataParallel) -> dict[str, Tensor]:
    names = checkpoint_names(ddp.module)
    return {names[name][0]: param.detach().clone() for name, param in ddp.module.named_parameters()}


def _weights_and_gradients(ddp: DistributedDataParallel) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Of the whole model, on one process."""
    assert dist.get_world_size() == 1
    gradients = []
    for step in range(STEPS):
        ddp.zero_grad_buffer()
        give_gradients(ddp, step)
        gradients.append({name: param.main_grad.clone() for name, param in ddp.module.named_parameters()})
    return _weights(ddp), gradients


def _reference(
    weights: Mapping[str, Tensor], gradients: list[dict[str, Tensor]], config: OptimizerConfig = OPTIMIZER
) -> tuple[dict[str, Tensor], list[float]]:
    """Weights and norms after the steps, by torch's own AdamW and clip_grad_norm_."""
    params = {name: torch.nn.Parameter(weight.clone()) for name, weight in weights.items()}
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
    )
    norms = []
    for of_step in gradients:
        for name, param in params.items():
            param.grad = of_step[name].clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(params.values(), config.clip_grad)))
        adam.step()
    return {name: param.detach() for name, param in params.items()}, norms


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)
