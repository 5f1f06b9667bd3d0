"""Runs inside an engine: does what the trainer rank beside it orders, and answers.

SGLang calls `load` on every tensor-parallel rank for a POST /update_weights_from_tensor whose load_format names it, as
the server's --custom-weight-loader does (r1hpc.rollout.engine_args.WEIGHT_LOADER). Unlike its "flattened_bucket" this
checks the payload's bytes; is done with them when it returns (SGLang's is once copies are queued, and the next payload
would be written under them); sets what a release of memory loses and no update brings; and an error of one rank is an
answer, not the end of the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.checksum import checksum
from r1hpc.sync.engine_placement import load_weights
from r1hpc.sync.engine_weights import compare, forget, never_written
from r1hpc.sync.order import ANSWER_BYTES, Answer, Order
from r1hpc.sync.outline import SyncError
from r1hpc.sync.shared_memory import opened

logger = logging.getLogger(__name__)

MOST_NAMED = 5
"""Weights named in an answer."""


def load(model: nn.Module, named_tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Carry out the orders, which are the names. Never raises: SGLang's scheduler would end, the other ranks wait."""
    for text, _ in named_tensors:
        try:
            _carry_out(model, Order.parse(text))
        except Exception:
            # Without an answer the trainer takes the order for not done.
            logger.exception("an order of the trainer could neither be done nor answered")


def _carry_out(model: nn.Module, order: Order) -> None:
    memory = opened({**order.answer}, torch.device("cpu"))
    assert memory.numel() == ANSWER_BYTES, f"the memory for the answer has {memory.numel()} bytes"
    fault, clock = None, Stopwatch()
    try:
        _do(model, order, clock)
    except Exception as error:
        logger.exception("%s of %s tensors failed", order.work, len(order.tensors))
        fault = str(error) if isinstance(error, SyncError) else f"{order.work}: {type(error).__name__}: {error}"
    Answer(order.key, fault, clock.seconds).write(memory)


@torch.no_grad()
def _do(model: nn.Module, order: Order, clock: Stopwatch) -> None:
    device = next(model.parameters()).device
    tensors = list(_opened(order, device, clock))
    if order.first:
        with clock.part("forget"):
            forget(model)
    with clock.part(order.work):
        if order.work == "load" and tensors:
            load_weights(model, tensors)
        if order.work == "compare":
            _check(never_written(model), "were never written")
            _check(compare(model, dict(tensors)), "are not what was sent")
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _opened(order: Order, device: torch.device, clock: Stopwatch) -> Iterator[tuple[str, Tensor]]:
    """The payload's tensors by name. Raises SyncError where its bytes are not the trainer's."""
    if order.payload is None:
        return
    with clock.part("open"):
        payload = opened(order.payload, device)[: order.size]
    with clock.part("checksum"):
        if (found := checksum(payload)) != order.checksum:
            raise SyncError(f"the payload's {order.size} bytes have checksum {found}, the trainer's {order.checksum}")
    for placed in order.tensors:
        yield placed.sent.name, placed.view(payload)


def _check(wrong: Sequence[str], what: str) -> None:
    if wrong:
        raise SyncError(f"{len(wrong)} weights {what}: {', '.join(wrong[:MOST_NAMED])}")
