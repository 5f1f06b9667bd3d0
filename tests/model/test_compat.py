"""What a process without a GPU does once it is prepared, and what it did not do before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.random import CheckpointWithoutOutput, get_cuda_rng_tracker
from torch import Tensor

from r1hpc.model import compat
from tests.forked_ranks import Result, fork_ranks


def in_process(work: Callable[[], Result]) -> Result:
    """The answer of a process of its own: nothing that `prepare` does is undone."""
    (answer,) = fork_ranks(lambda _: work(), 1, 60)
    return answer


def test_nothing_is_patched_before_prepare() -> None:
    assert not torch.cuda.is_available()
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")
    assert torch.zeros(1).type() == "torch.FloatTensor"


def _twice() -> str:
    compat.prepare("cpu")
    compat.prepare("cpu")
    try:
        compat.prepare("meta")
    except compat.DeviceError as error:
        return str(error)
    return "accepted"


def test_prepare_is_for_one_device() -> None:
    assert in_process(_twice) == (
        "this process is prepared for cpu and cannot be for meta as well: patches of torch and Megatron are not undone;"
        " start another process"
    )


def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(compat.DeviceError, match="torch finds no GPU here"):
        compat.prepare("cuda")


def _cuda_means_cpu() -> list[str]:
    compat.prepare("cpu")
    made = [
        torch.zeros(2, device="cuda"),
        torch.zeros(2, device=torch.device("cuda", 1)),
        torch.zeros(2).cuda(non_blocking=True),
        torch.zeros(2).to("cuda:0"),
        torch.zeros(2).to(device="cuda", dtype=torch.float64),
        torch.zeros(2, pin_memory=True),
        torch.zeros(2).pin_memory(),
        torch.zeros(2, device=torch.cuda.current_device()),
    ]
    return [tensor.device.type for tensor in made]


def test_cuda_in_a_call_means_the_cpu() -> None:
    assert in_process(_cuda_means_cpu) == ["cpu"] * 8


def _meta() -> list[str]:
    compat.prepare("meta")
    return [torch.zeros(2, device=device).device.type for device in ("cuda", torch.cuda.current_device(), "cpu")]


def test_on_meta_cuda_means_meta_and_cpu_stays() -> None:
    assert in_process(_meta) == ["meta", "meta", "cpu"]


class MakesOnCuda(torch.autograd.Function):
    """Writes device="cuda" in its backward, as Megatron's functions do."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0] + torch.ones(1, device="cuda")


def _backwards() -> list[float]:
    compat.prepare("cpu")
    found = []
    for backward in (_by_tensor, _by_backward, _by_grad):
        x = torch.ones(1, requires_grad=True)
        found.append(float(backward((3 * MakesOnCuda.apply(x)).sum(), x)))  # type: ignore[no-untyped-call]
    return found


def _by_tensor(y: Tensor, x: Tensor) -> Tensor:
    y.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad


def _by_backward(y: Tensor, x: Tensor) -> Tensor:
    torch.autograd.backward(y)
    assert x.grad is not None
    return x.grad


def _by_grad(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y, x)[0]


def test_cuda_in_a_backward_pass_means_the_cpu_however_it_was_started() -> None:
    assert in_process(_backwards) == [4.0, 4.0, 4.0]


def _types() -> list[str]:
    compat.prepare("cpu")
    made = [torch.zeros(1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    return [*(tensor.type() for tensor in made), made[0].type(torch.float64).type()]


def test_types_are_named_as_the_distributed_optimizer_asks() -> None:
    assert in_process(_types) == ["torch.cuda.FloatTensor", "torch.cuda.BFloat16Tensor", "torch.cuda.DoubleTensor"]


def _draws() -> tuple[list[float], list[float], list[float]]:
    compat.prepare("cpu")
    tracker = get_cuda_rng_tracker()
    tracker.reset()
    torch.cuda.manual_seed(1)
    tracker.add("mine", 5)
    first = torch.rand(2).tolist()
    with tracker.fork("mine"):
        forked = torch.rand(2).tolist()
    after = torch.rand(2).tolist()
    expected = torch.Generator().manual_seed(1)
    assert first + after == torch.rand(4, generator=expected).tolist()
    return first, forked, torch.rand(2, generator=torch.Generator().manual_seed(5)).tolist()


def test_the_random_state_tracker_draws_from_its_own_state_and_restores_the_other() -> None:
    first, forked, expected = in_process(_draws)
    assert forked == expected != first


def _recomputed() -> tuple[bool, bool]:
    """Gradients through Megatron's two ways of recomputation, and without."""
    compat.prepare("cpu")
    tracker = get_cuda_rng_tracker()
    tracker.reset()
    weight = torch.randn(4, 4)

    def gradient(forward: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        return _by_tensor(forward(x).sum(), x)

    def whole(x: Tensor) -> Tensor:
        return torch.tanh(x @ weight)

    def without_output(x: Tensor) -> Tensor:
        checkpoint = CheckpointWithoutOutput()
        hidden: Tensor = checkpoint.checkpoint(whole, x)
        # What saves the discarded output, through a view of it.
        out = (hidden.view(12) ** 2).view(3, 4)
        checkpoint.discard_output_and_register_recompute(out)
        return out

    plain = gradient(lambda x: whole(x) ** 2)
    full = gradient(lambda x: tensor_parallel.checkpoint(whole, False, x) ** 2)
    return plain.equal(full), plain.equal(gradient(without_output))


def test_recomputation_gives_the_same_gradients_without_transformer_engine_or_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert in_process(_recomputed) == (True, True)
