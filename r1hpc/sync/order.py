"""What a trainer rank asks of the engine's rank beside it, and what that answers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import torch
from torch import Tensor

from r1hpc.sync.encoding import SentTensor

Work = Literal["load", "compare"]
"""load: put the payload's tensors into the model. compare: look for weights that were never written, and hold the
payload's tensors against the model's."""

ANSWER_BYTES = 1 << 14
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Placed:
    """A tensor and where it begins in the payload."""

    sent: SentTensor
    begin: int

    def view(self, payload: Tensor) -> Tensor:
        """It, without a copy."""
        return payload[self.begin : self.begin + self.sent.size_bytes].view(self.sent.dtype).view(self.sent.shape)


@dataclass(frozen=True)
class Order:
    """One payload's header."""

    work: Work
    key: str
    """Of this order alone: an answer repeats it."""
    answer: Mapping[str, Any]
    """Ticket of the memory for the answer."""
    payload: Mapping[str, Any] | None
    """Ticket of the bytes; null where there are none."""
    size: int
    """Bytes of the payload."""
    checksum: int
    tensors: tuple[Placed, ...]
    first: bool = False
    """Of a sync: before anything else make every weight NaN, so that one that is never sent shows."""

    def serialized(self) -> str:
        """As POST /update_weights_from_tensor wants it: base64 of a pickled list of (name, tensor).

        The name is this order. The tensor is empty: SGLang unpickles only what is on its list, and of a full tensor it
        would make its own copy, or open it on whatever device it thinks right.
        """
        tensors = [[p.sent.name, _name(p.sent.dtype), list(p.sent.shape), p.begin] for p in self.tensors]
        text = json.dumps(self.__dict__ | {"tensors": tensors})
        buffer = io.BytesIO()
        ForkingPickler(buffer).dump([(text, torch.empty(0))])
        return base64.b64encode(buffer.getvalue()).decode()

    @classmethod
    def parse(cls, text: str) -> Order:
        """The order that `serialized` gave as a name."""
        values = json.loads(text)
        tensors = tuple(
            Placed(SentTensor(name, getattr(torch, dtype), tuple(shape)), begin)
            for name, dtype, shape, begin in values["tensors"]
        )
        return cls(**values | {"tensors": tensors})


@dataclass(frozen=True)
class Answer:
    """What became of an order."""

    key: str
    fault: str | None = None
    """Why it was not done; null where it was."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Spent on it by the engine's rank, by part: "open", "checksum", "forget", "load", "compare"."""

    def write(self, memory: Tensor) -> None:
        """Into the memory for it: its text first, then how long it is."""
        fault = self.fault[: ANSWER_BYTES // 8] if self.fault else None  # a character may take six bytes
        text = json.dumps({"key": self.key, "fault": fault, "seconds": dict(self.seconds)}).encode()
        memory[_LENGTH_BYTES : _LENGTH_BYTES + len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        memory[:_LENGTH_BYTES].view(torch.int64).fill_(len(text))

    @classmethod
    def read(cls, memory: Tensor) -> Answer | None:
        """What was written last; null where nothing was."""
        length = int(memory[:_LENGTH_BYTES].view(torch.int64).item())
        if not length:
            return None
        return cls(**json.loads(memory[_LENGTH_BYTES : _LENGTH_BYTES + length].numpy().tobytes()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
