"""What lets megatron-core's GPU code run on a CPU over gloo, or be built without memory on the meta device.

Megatron asks torch.cuda for the current device, streams and random state, and writes device="cuda" in its schedules
and optimizers. All of that is answered here for one device that does one thing after another.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from megatron.core.tensor_parallel import random
from megatron.core.transformer.moe import token_dispatcher
from torch import Tensor
from torch.overrides import TorchFunctionMode


def patch(device: torch.device) -> None:
    """Let `device` stand for the GPU in this process, for good."""
    _answer_for_the_gpu(device)
    _draw_from_the_cpu()
    # Upstream turns the splits of the experts' all-to-all into numbers only where they lie on a GPU.
    token_dispatcher.maybe_move_tensor_to_cpu = _to_host
    # Megatron's small fusions are torch.compile'd: minutes of compilation for a model that runs in seconds.
    torch.compiler.set_stance("force_eager")
    mode = CudaMeans(device)
    _hold_in_backward(mode)
    mode.__enter__()  # type: ignore[no-untyped-call]


class CudaMeans(TorchFunctionMode):
    """Rewrites what calls of torch say of "cuda" for another device, as torch.set_default_device does it."""

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
        if func is Tensor.cuda:
            return args[0]
        if func is Tensor.type and len(args) == 1 and not named:
            # The optimizers know their parameters' dtypes by names such as torch.cuda.FloatTensor.
            name: str = func(*args)
            return name if name.startswith("torch.cuda.") else name.replace("torch.", "torch.cuda.", 1)
        if _is_cuda(named.get("device")):
            named["device"] = self.device
        if named.get("pin_memory"):
            named["pin_memory"] = False
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.to:
            args = [self.device if _is_cuda(arg) else arg for arg in args]
        return func(*args, **named)


class Stream:
    """A stream of a device that does one thing after another: nothing to wait for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


class Event:
    """The time at which it was recorded."""

    def __init__(self, *_: object, **__: object) -> None:
        self._at_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._at_s = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds, as torch.cuda.Event gives them."""
        return (end._at_s - self._at_s) * 1e3


def _answer_for_the_gpu(device: torch.device) -> None:
    stream = Stream()
    # A function of its own for each name: torch's compiler refuses one object under two names of torch.
    answers: dict[str, Any] = {
        "current_device": lambda: device,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "is_current_stream_capturing": lambda: False,
        "Stream": Stream,
        "Event": Event,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)


def _draw_from_the_cpu() -> None:
    """The generator that Megatron's trackers of random state save, seed and restore is the CPU's.

    Upstream queues what it would set until CUDA starts, which it never does here.
    """

    def get_state(device: object = None, clone: bool = False, graph_safe: bool = False) -> Tensor:
        return torch.get_rng_state()

    def set_state(new_state: Tensor, device: object = None, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    random._get_cuda_rng_state, random._set_cuda_rng_state = get_state, set_state
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda new_state, device=None: torch.set_rng_state(new_state)
    torch.cuda.manual_seed = lambda seed: _seed(seed)


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)


def _hold_in_backward(mode: CudaMeans) -> None:
    """A mode does not hold inside calls that it handles, and Tensor.backward is one: enter it again for the engine.

    The engine runs the backward functions in the thread that started it, there being no GPU.
    """
    run = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def run_in_mode(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return run(*args, **kwargs)

    torch.autograd._engine_run_backward = run_in_mode  # type: ignore[attr-defined]


def _is_cuda(value: object) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def _to_host(tensor: object, as_numpy: bool = False, record_stream: bool = False) -> object:
    return tensor.numpy() if as_numpy and isinstance(tensor, Tensor) else tensor
