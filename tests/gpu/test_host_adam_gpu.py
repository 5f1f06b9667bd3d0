"""The optimizer's state in pinned host memory, parameters on a GPU. Needs no more than torch and pytest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1hpc.train.arena import Arena, TensorSpec
from r1hpc.train.host_adam import HostAdam

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

SIZES = (1_000_003, 4096, 7)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_on_a_gpu_get_the_bits_that_they_get_on_a_cpu(dtype: torch.dtype, overlap: bool) -> None:
    torch.manual_seed(1)
    values = [torch.randn(size).to(dtype) for size in SIZES]
    gpu, cpu = _adam([value.cuda() for value in values], overlap), _adam([value.clone() for value in values], False)
    for _ in range(5):
        gradients = [torch.randn(size) for size in SIZES]
        _step(gpu, [gradient.cuda() for gradient in gradients])
        _step(cpu, gradients)
        for there, here in zip(gpu.shards, cpu.shards, strict=True):
            assert torch.equal(there.param.cpu(), here.param)
            assert torch.equal(there.master, here.master)
            assert gpu.differing(there) == 0
    assert all(shard.master.is_pinned() for shard in gpu.shards)


def test_a_pinned_arena_takes_what_it_needs_and_is_unpinned_when_closed() -> None:
    arena = Arena([TensorSpec((5, 1000), torch.float32), TensorSpec((3,), torch.bfloat16)], torch.device("cpu"), True)
    first, second = arena.tensors
    assert arena.size_bytes == 20_032 + 64
    assert first.is_pinned()
    assert second.is_pinned()
    arena.close()
    assert not first.is_pinned()


def _adam(params: list[Tensor], overlap: bool) -> HostAdam:
    groups = [{"params": params, "weight_decay": 0.1}]
    adam = HostAdam(groups, betas=(0.9, 0.98), eps=1e-8, offload=True, overlap=overlap, piece_elements=4096)
    adam.allocate()
    return adam


def _step(adam: HostAdam, gradients: list[Tensor]) -> None:
    for shard, gradient in zip(adam.shards, gradients, strict=True):
        shard.param.decoupled_grad = gradient  # type: ignore[attr-defined]
    for group in adam.param_groups:
        group["lr"] = 1e-3
    adam.step()
