"""What can be wrong with the payloads of a sync: done to them between the trainers and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from r1hpc.actors.rank import TrainerRank
from r1hpc.sync.order import Order
from r1hpc.sync.outline import TURNS
from tests.sync.beside import order_of

Tamper = Callable[[int, list[str | None]], None]
"""Called with the number of a bucket and the payload of each rank, which it may change."""


def flip_a_bit(trainer: TrainerRank, bucket: int, payloads: list[str | None]) -> None:
    """In this rank's second payload of weights, after its checksum was taken."""
    if bucket != 2 or payloads[0] is None:
        return
    sync = trainer._publisher._sync
    assert sync is not None and sync._hand_over is not None
    memory = sync._hand_over._turns[bucket % TURNS]._memory
    assert memory is not None
    memory.tensor[order_of(payloads[0]).size // 2] ^= 1
    torch.cuda.synchronize()


def wrong_device(bucket: int, payloads: list[str | None]) -> None:
    """Each rank is given its neighbour's; with one rank nothing is wrong."""
    if bucket == 2 and len(payloads) > 1:
        payloads[:] = payloads[1:] + payloads[:1]


def say_wrong_device(bucket: int, payloads: list[str | None]) -> None:
    """As if the payload lay on another GPU."""
    if bucket == 2 and payloads[0] is not None:
        order = order_of(payloads[0])
        assert order.payload is not None
        payloads[0] = replace(order, payload={**order.payload, "uuid": "another"}).serialized()


def skip_forgetting(bucket: int, payloads: list[str | None]) -> None:
    """As a sender would that knows of no weights but those of the checkpoint."""
    if bucket == 0:
        payloads[:] = [_as_a_later_one(payload) for payload in payloads]


def _as_a_later_one(payload: str | None) -> str | None:
    if payload is None:
        return None
    order: Order = order_of(payload)
    return replace(order, first=False).serialized()
