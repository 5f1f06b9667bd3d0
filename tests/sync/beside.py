"""What stands beside a trainer rank in a test: takes payloads as an engine's rank does, and keeps their tensors."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from r1hpc.sync.checksum import checksum
from r1hpc.sync.form import SyncForm
from r1hpc.sync.order import Answer, Order
from r1hpc.sync.outline import SyncOutline, SyncTarget
from r1hpc.sync.publisher import WeightPublisher
from r1hpc.sync.shared_memory import opened
from r1hpc.train.actor import TrainActor
from r1hpc.train.checkpoint.pieces import held_model

Packed = tuple[str, tuple[int, ...], bytes]
CPU = torch.device("cpu")


def publisher(
    actor: TrainActor, form: SyncForm, bucket_bytes: int = 1 << 16, keep_groups: bool = True
) -> WeightPublisher:
    """Of this rank's actor, which is awake."""
    return WeightPublisher(
        lambda: actor.weights.tensors("actor"),
        held_model(actor.model),
        actor.config.shape,
        form,
        device=CPU,
        bucket_bytes=bucket_bytes,
        keep_groups=keep_groups,
    )


def order_of(payload: str) -> Order:
    """The order in a payload as SGLang hands it to its loader."""
    ((text, empty),) = pickle.loads(base64.b64decode(payload))
    assert empty.numel() == 0
    return Order.parse(text)


def bytes_of(order: Order) -> Tensor:
    """The payload itself."""
    return torch.empty(0, dtype=torch.uint8) if order.payload is None else opened(order.payload, CPU)[: order.size]


def answer(order: Order, fault: str | None = None) -> None:
    """Tell the trainer rank what became of it."""
    Answer(order.key, fault).write(opened(order.answer, CPU))


class Receiver:
    """An engine's rank that puts what it is given on a shelf."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        """By name, of what was loaded."""
        self.sizes: list[int] = []
        self.together: list[tuple[str, ...]] = []
        """Names of each payload."""
        self.compared: list[str] = []

    def take(self, payload: str | None) -> None:
        """Check, keep and answer."""
        if payload is None:
            return
        order = order_of(payload)
        data = bytes_of(order)
        assert checksum(data) == order.checksum
        named = {placed.sent.name: placed.view(data).clone() for placed in order.tensors}
        fault = None
        if order.work == "load":
            assert not named.keys() & self.tensors.keys()
            self.tensors |= named
            self.sizes.append(order.size)
            self.together.append(tuple(named))
        elif order.work == "compare":
            self.compared += named
            other = [name for name, tensor in named.items() if not self._has(name, tensor)]
            fault = f"other or not there: {', '.join(other)}" if other else None
        answer(order, fault)

    def _has(self, name: str, tensor: Tensor) -> bool:
        return name in self.tensors and torch.equal(bits(self.tensors[name]), bits(tensor))


def receive_all(
    sender: WeightPublisher, targets: Sequence[SyncTarget], full_check: bool = False
) -> tuple[SyncOutline, Receiver]:
    """One whole sync, as this rank sees it."""
    outline = sender.begin(targets, full_check)
    receiver = Receiver()
    for bucket in range(outline.buckets):
        receiver.take(sender.offer(bucket))
    assert sender.end().faults == ()
    return outline, receiver


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Packed]:
    """To be sent between processes: megatron-core keeps torch from unpickling fp8."""
    return {
        name: (str(t.dtype).removeprefix("torch."), tuple(t.shape), bits(t).numpy().tobytes())
        for name, t in tensors.items()
    }


def unpacked(tensors: Mapping[str, Packed]) -> dict[str, Tensor]:
    """What was packed."""
    return {
        name: torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(shape)
        for name, (dtype, shape, data) in tensors.items()
    }


def bits(tensor: Tensor) -> Tensor:
    """Its memory, to be compared without regard to NaN or sign."""
    return tensor.contiguous().view(torch.uint8)
