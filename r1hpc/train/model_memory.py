"""The device memory of a wrapped model, given up while the engines generate and taken again to train.

Parameters and gradients are views of Megatron's buffers. Their storage is resized to nothing and back, so every view,
bucket and shard is valid again afterwards. Weights come back from a host copy that exists anyway; Megatron's own
offload would make a second one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from r1hpc.errors import R1hpcError
from r1hpc.train.host_weights import HostWeights


class ModelMemoryError(R1hpcError):
    """The model is put to sleep or woken at the wrong time."""


class ModelMemory:
    """Parameter and gradient buffers of one wrapped model. While it sleeps nothing may touch the model."""

    def __init__(self, ddp_model: DistributedDataParallel, host: HostWeights) -> None:
        """host: copies of the same model's weights."""
        self._host = host
        self._sizes = {tensor: tensor.untyped_storage().size() for tensor in _buffers(ddp_model)}
        self._device = next(iter(self._sizes)).device
        self._asleep = False

    @property
    def asleep(self) -> bool:
        """The buffers have no memory."""
        return self._asleep

    @property
    def size_bytes(self) -> int:
        """Of the buffers: what sleeping gives back."""
        return sum(self._sizes.values())

    def sleep(self) -> None:
        """Give the memory back to the device. What the model holds is lost: save a host copy before, if it is new.

        Raises ModelMemoryError if there is no host copy at all to wake up with.
        """
        if self._asleep:
            raise ModelMemoryError("the model sleeps already")
        if not self._host.names:
            raise ModelMemoryError('there is no host copy of the weights to wake up with; save one, as "actor", first')
        self._synchronize()
        for tensor in self._sizes:
            tensor.untyped_storage().resize_(0)
        self._asleep = True
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def wake(self, weights: str = "actor") -> None:
        """Take the memory again, with the weights of this host copy and gradients of zero."""
        if not self._asleep:
            raise ModelMemoryError("the model is awake already")
        self._host.tensors(weights)  # a wrong name is refused while the model still sleeps
        for tensor, size_bytes in self._sizes.items():
            tensor.untyped_storage().resize_(size_bytes)
            tensor.zero_()  # padding too, which is reduced and gathered with the rest
        self._asleep = False
        self._host.restore(weights)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _buffers(ddp_model: DistributedDataParallel) -> Iterator[Tensor]:
    for buffer in ddp_model.buffers + ddp_model.expert_parallel_buffers:
        yield buffer.param_data
        yield buffer.grad_data
