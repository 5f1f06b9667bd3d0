"""Copies of all weights in host memory, by name: "actor", "ref".

One model is on the device; the reference, and the actor itself, are copied in and out of it. The copy "actor" is also
what the engines are sent and what a checkpoint is written from. A copy is in the parameters' own dtypes, so what is
restored is what was saved, bit for bit; the optimizer's float32 masters have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from r1hpc.errors import R1hpcError
from r1hpc.model.build import weights
from r1hpc.train.arena import Arena, TensorSpec


class HostWeightsError(R1hpcError):
    """A copy that does not exist, or weights that are not on the device."""


class HostWeights:
    """Named copies of a model's parameters and of its routers' expert biases; pinned where the model is on a GPU."""

    def __init__(self, model: nn.Module) -> None:
        """model: not wrapped. Nothing is allocated until a first copy is saved."""
        self._live = weights(model)
        self._device = next(iter(self._live.values())).device
        self._arenas: dict[str, Arena] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the copies that exist."""
        return tuple(self._arenas)

    @property
    def size_bytes(self) -> int:
        """Of all copies together."""
        return sum(arena.size_bytes for arena in self._arenas.values())

    @torch.no_grad()
    def save(self, name: str) -> None:
        """Copy the model's weights into this copy, which is allocated if it does not exist; done when it returns."""
        self._check_on_device()
        if name not in self._arenas:
            specs = [TensorSpec.of(tensor) for tensor in self._live.values()]
            self._arenas[name] = Arena(specs, torch.device("cpu"), pinned=self._device.type == "cuda")
        for copy, live in zip(self._arenas[name].tensors, self._live.values(), strict=True):
            copy.copy_(live, non_blocking=True)
        self._finish()

    @torch.no_grad()
    def restore(self, name: str) -> None:
        """Copy this copy into the model; done when it returns."""
        arena = self._arena(name)
        self._check_on_device()
        for copy, live in zip(arena.tensors, self._live.values(), strict=True):
            live.copy_(copy, non_blocking=True)
        self._finish()

    def tensors(self, name: str) -> Mapping[str, Tensor]:
        """The copy itself, by the names that the model has for them; in the model's dtypes and shapes."""
        return MappingProxyType(dict(zip(self._live, self._arena(name).tensors, strict=True)))

    def release(self, name: str) -> None:
        """Give the memory of this copy back."""
        self._arena(name).close()
        del self._arenas[name]

    def _arena(self, name: str) -> Arena:
        if name not in self._arenas:
            raise HostWeightsError(f'there is no copy "{name}" of the weights; there are: {_listed(self.names)}')
        return self._arenas[name]

    def _check_on_device(self) -> None:
        """A released parameter has no memory behind it: to read it would be to crash."""
        for name, tensor in self._live.items():
            if tensor.numel() and not tensor.untyped_storage().size():
                raise HostWeightsError(f"{name} has no memory: the model sleeps; wake it before copying its weights")

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "none"
