"""A gradient that is not finite stops every rank with the same words, before it is summed into the others'."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from r1hpc.model.parallel import Layout
from r1hpc.train.gradients import GradientError, check_gradients, checkpoint_names, finalize_checked
from tests.train.trained_model import EXPERTS, on_ranks

PROJECTION = "self_attention.linear_proj.weight"


def test_a_nan_on_one_rank_is_named_on_all_with_rank_layer_of_the_whole_model_and_parameter(tmp_path: Path) -> None:
    """Ranks 2 and 3 are the second stage, layers 2 to 4; rank 3's second layer is layer 3 of the model."""

    def work(ddp: DistributedDataParallel) -> tuple[str, float]:
        _fill(ddp, 1.0)
        if dist.get_rank() == 3:
            gradient = _gradient(ddp, f"decoder.layers.1.{PROJECTION}")
            gradient[0, :3] = float("nan")
            gradient[1, 0] = float("-inf")
        return _refused(ddp), float(_gradient(ddp, f"decoder.layers.0.{PROJECTION}").max())

    results = on_ranks(work, tmp_path, ranks=4, layout=Layout(pp=2, first_layers=2))
    message, reduced = results[0]
    assert all(result == (message, reduced) for result in results)
    assert reduced == 1.0  # nothing was summed over the two data-parallel ranks
    assert "1 gradients on 1 of 4 ranks are not finite" in message
    place = "rank 3 (tp 0, pp 1, cp 0, dp 1, ep 0)"
    size = 128 * 128
    assert f"{place}: layer 3, decoder.layers.3.{PROJECTION}: 3 NaN and 1 infinite of {size} values" in message


def test_experts_and_what_lies_outside_the_layers_are_checked_too(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> str:
        _fill(ddp, 0.5)
        if dist.get_rank() == 0:
            _gradient(ddp, "embedding.word_embeddings.weight")[7, 7] = float("inf")
        else:
            expert = next(name for name, _ in ddp.module.named_parameters() if EXPERTS in name)
            _gradient(ddp, expert).view(-1)[-1] = float("nan")
        return _refused(ddp)

    first, second = on_ranks(work, tmp_path, ranks=2, layout=Layout(ep=2))
    assert first == second
    assert "2 gradients on 2 of 2 ranks are not finite" in first
    assert "rank 0 (tp 0, pp 0, cp 0, dp 0, ep 0): embedding.word_embeddings.weight: 0 NaN and 1 infinite" in first
    assert "rank 1 (tp 0, pp 0, cp 0, dp 1, ep 1): layer 1, decoder.layers.1.mlp.experts." in first


def test_a_nan_loss_names_twenty_gradients_and_counts_the_rest(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> tuple[str, int]:
        _fill(ddp, float("nan"))
        return _refused(ddp), len(list(ddp.module.parameters()))

    ((message, parameters),) = on_ranks(work, tmp_path)
    assert message.startswith(f"{parameters} gradients on 1 of 1 ranks")
    assert message.count("rank 0 (") == 20
    assert message.endswith(f"and {parameters - 20} more")


def test_finite_gradients_are_summed_and_divided_once_by_the_count_of_all_ranks(tmp_path: Path) -> None:
    """Rank r has gradient r + 1 and r + 2 tokens: (1 + 2) / (2 + 3)."""

    def work(ddp: DistributedDataParallel) -> tuple[float, float]:
        rank = dist.get_rank()
        _fill(ddp, rank + 1.0)
        finalize_checked([ddp], torch.tensor(rank + 2))
        owned = [buffer.grad_data.chunk(2)[rank] for buffer in ddp.buffers + ddp.expert_parallel_buffers]
        values = torch.cat([part[part != 0] for part in owned])
        return float(values.min()), float(values.max())

    for low, high in on_ranks(work, tmp_path, ranks=2):
        assert (low, high) == pytest.approx((0.6, 0.6))


def test_large_finite_gradients_pass(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> bool:
        _fill(ddp, 3e38)  # their sum is not finite
        check_gradients([ddp])
        return True

    assert on_ranks(work, tmp_path) == [True]


def test_names_are_those_of_a_checkpoint_on_every_stage(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> set[tuple[str, int | None]]:
        return {
            named
            for named in checkpoint_names(ddp.module).values()
            if named[0].endswith((PROJECTION, "word_embeddings.weight"))
        }

    first, second = on_ranks(work, tmp_path, ranks=2, layout=Layout(pp=2, first_layers=2))
    assert first == {("embedding.word_embeddings.weight", None), *_projections(range(2))}
    assert second == _projections(range(2, 5))


def _projections(layers: range) -> set[tuple[str, int | None]]:
    return {(f"decoder.layers.{layer}.{PROJECTION}", layer) for layer in layers}


def _refused(ddp: DistributedDataParallel) -> str:
    with pytest.raises(GradientError) as caught:
        finalize_checked([ddp], torch.tensor(10))
    return str(caught.value)


def _fill(ddp: DistributedDataParallel, value: float) -> None:
    for param in ddp.module.parameters():
        param.main_grad.fill_(value)


def _gradient(ddp: DistributedDataParallel, name: str) -> Tensor:
    gradient: Tensor = dict(ddp.module.named_parameters())[name].main_grad
    return gradient
