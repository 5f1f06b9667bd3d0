"""Copies of the weights in host memory, and the device memory that is given up meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from r1hpc.model.build import weights
from r1hpc.train.host_weights import HostWeights, HostWeightsError
from r1hpc.train.model_memory import ModelMemory, ModelMemoryError
from r1hpc.train.optimizer import build_optimizer
from tests.train.trained_model import OPTIMIZER, give_gradients, on_ranks

ROUTER_BIASES = [f"decoder.layers.{layer}.mlp.router.expert_bias" for layer in range(1, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_actor_and_reference_restores_each_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    def work(ddp: DistributedDataParallel) -> None:
        model, host = ddp.module, HostWeights(ddp.module)
        actor = _snapshot(model)
        host.save("actor")
        for weight in weights(model).values():
            weight.mul_(-3).view(-1)[::7] = -0.0
        reference = _snapshot(model)
        host.save("ref")
        host.restore("actor")
        assert _same(_snapshot(model), actor)
        host.restore("ref")
        assert _same(_snapshot(model), reference)
        assert _same(host.tensors("actor"), actor)

    on_ranks(work, tmp_path, dtype=dtype)


def test_a_copy_has_every_parameter_and_router_bias_in_its_dtype_and_exact_size(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> tuple[list[str], set[torch.dtype], set[torch.dtype], int, int]:
        host = HostWeights(ddp.module)
        host.save("actor")
        copy = host.tensors("actor")
        expected = dict(ddp.module.named_parameters()).keys() | set(ROUTER_BIASES)
        assert copy.keys() == expected
        assert all(copy[name].shape == param.shape for name, param in ddp.module.named_parameters())
        parameters = {tensor.dtype for name, tensor in copy.items() if name not in ROUTER_BIASES}
        biases = {copy[name].dtype for name in ROUTER_BIASES}
        least = sum(tensor.numel() * tensor.element_size() for tensor in copy.values())
        return sorted(set(copy) & set(ROUTER_BIASES)), parameters, biases, host.size_bytes, least

    ((found, parameters, biases, size_bytes, least),) = on_ranks(work, tmp_path, dtype=torch.bfloat16)
    assert (found, parameters, biases) == (ROUTER_BIASES, {torch.bfloat16}, {torch.float32})
    assert least <= size_bytes < least * 1.01


def test_a_copy_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> list[str]:
        host = HostWeights(ddp.module)
        messages = [_message(lambda: host.restore("actor"))]
        host.save("actor")
        host.save("ref")
        messages.append(_message(lambda: host.tensors("reference")))
        host.release("ref")
        messages.append(_message(lambda: host.restore("ref")))
        assert host.names == ("actor",)
        return messages

    ((none, two, one),) = on_ranks(work, tmp_path)
    assert none == 'there is no copy "actor" of the weights; there are: none'
    assert two == 'there is no copy "reference" of the weights; there are: "actor", "ref"'
    assert one == 'there is no copy "ref" of the weights; there are: "actor"'


def test_sleeping_frees_parameters_and_gradients_and_waking_brings_every_view_back(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> None:
        host = HostWeights(ddp.module)
        memory = ModelMemory(ddp, host)
        before = _snapshot(ddp.module)
        host.save("actor")
        give_gradients(ddp, step=0)
        memory.sleep()
        buffers = [buffer for owner in ddp.buffers + ddp.expert_parallel_buffers for buffer in _tensors(owner)]
        assert {buffer.untyped_storage().size() for buffer in buffers} == {0}
        memory.wake()
        assert sum(buffer.untyped_storage().size() for buffer in buffers) == memory.size_bytes
        assert _same(_snapshot(ddp.module), before)
        assert all(not param.main_grad.any() for param in ddp.module.parameters())

    on_ranks(work, tmp_path, ranks=2, dtype=torch.bfloat16)


@pytest.mark.parametrize("offload", [False, True])
def test_training_goes_on_after_sleep_as_if_there_had_been_none(tmp_path: Path, offload: bool) -> None:
    def work(ddp: DistributedDataParallel, sleeps: bool) -> dict[str, Tensor]:
        optimizer, host = build_optimizer(ddp, OPTIMIZER, offload), HostWeights(ddp.module)
        memory = ModelMemory(ddp, host)
        for step in range(3):
            if sleeps:
                host.save("actor")
                memory.sleep()
                memory.wake()
                optimizer.check_masters()
            optimizer.zero_grad()
            give_gradients(ddp, step)
            optimizer.step(1e-3)
        return _snapshot(ddp.module)

    awake = on_ranks(lambda ddp: work(ddp, sleeps=False), tmp_path, ranks=2, dtype=torch.bfloat16)
    slept = on_ranks(lambda ddp: work(ddp, sleeps=True), tmp_path, ranks=2, dtype=torch.bfloat16)
    assert all(_same(one, other) for one, other in zip(awake, slept, strict=True))


def test_waking_with_the_reference_saves_a_swap(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> None:
        host = HostWeights(ddp.module)
        memory = ModelMemory(ddp, host)
        host.save("actor")
        for weight in weights(ddp.module).values():
            weight.add_(1)
        reference = _snapshot(ddp.module)
        host.save("ref")
        host.restore("actor")
        memory.sleep()
        memory.wake("ref")
        assert _same(_snapshot(ddp.module), reference)

    on_ranks(work, tmp_path)


def test_what_would_read_memory_that_is_gone_or_lose_the_weights_is_refused(tmp_path: Path) -> None:
    def work(ddp: DistributedDataParallel) -> list[str]:
        host = HostWeights(ddp.module)
        memory = ModelMemory(ddp, host)
        messages = [_message(memory.sleep), _message(memory.wake)]
        host.save("actor")
        memory.sleep()
        messages += [_message(memory.sleep), _message(lambda: host.save("actor")), _message(lambda: memory.wake("ref"))]
        assert memory.asleep
        memory.wake()
        assert not memory.asleep
        return messages

    ((no_copy, awake, asleep, save, unknown),) = on_ranks(work, tmp_path)
    assert "no host copy of the weights to wake up with" in no_copy
    assert awake == "the model is awake already"
    assert asleep == "the model sleeps already"
    assert "has no memory: the model sleeps" in save
    assert 'no copy "ref"' in unknown


def _snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in weights(model).items()}


def _same(one: object, other: object) -> bool:
    """The same names, and every value the same bit for bit."""
    left, right = dict(one), dict(other)  # type: ignore[call-overload]
    assert left
    return left.keys() == right.keys() and all(torch.equal(_bits(left[name]), _bits(right[name])) for name in left)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _tensors(buffer: object) -> tuple[Tensor, Tensor]:
    return buffer.param_data, buffer.grad_data  # type: ignore[attr-defined]


def _message(refused: object) -> str:
    with pytest.raises((HostWeightsError, ModelMemoryError)) as caught:
        refused()  # type: ignore[operator]
    return str(caught.value)
