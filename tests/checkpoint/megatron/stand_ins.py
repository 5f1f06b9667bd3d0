"""What lets megatron-core build and run forward without a GPU. For a process of its own: nothing here is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.moe import token_dispatcher
from torch.overrides import TorchFunctionMode


def install(device: str) -> None:
    """Put on `device` ("cpu" or "meta") what megatron-core puts on the GPU."""
    here = torch.device(device)
    _GpuIs(here).__enter__()  # type: ignore[no-untyped-call]
    answers = {
        "current_device": lambda: here,
        "current_stream": lambda: _Stream(),
        "synchronize": lambda: None,
        "Stream": _Stream,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    # Nothing is drawn: no dropout, and weights come from a checkpoint.
    CudaRNGStatesTracker.fork = lambda *_: nullcontext()
    # Upstream turns the splits of the experts' all-to-all into numbers only where they lie on a GPU.
    token_dispatcher.maybe_move_tensor_to_cpu = _to_host


class _GpuIs(TorchFunctionMode):
    """Rewrites the literals device="cuda" and pin_memory=True."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("device") == "cuda":
            named["device"] = self.device
        if named.get("pin_memory"):
            named["pin_memory"] = False
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **named)


class _Stream:
    """A CPU does one thing after another."""

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def record_event(self) -> _Stream:
        return self

    def synchronize(self) -> None:
        pass


def _to_host(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
    del record_stream
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor
