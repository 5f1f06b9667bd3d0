"""One trainer rank's part of a sync: gives its elements, puts tensors together, hands payloads to the engine beside."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.checkpoint.collective import as_error, everyones, raise_together
from r1hpc.errors import R1hpcError
from r1hpc.plan.model_shape import ModelShape
from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.buckets import Bucket, payload_sizes
from r1hpc.sync.catalog import holdings, plan_assemblies
from r1hpc.sync.checksum import checksum
from r1hpc.sync.delivery import Delivery
from r1hpc.sync.form import SyncForm
from r1hpc.sync.groups import SyncGroups
from r1hpc.sync.hand_over import HandOver
from r1hpc.sync.order import Order, Placed, Work
from r1hpc.sync.outline import SyncError, SyncOutcome, SyncOutline, SyncTarget
from r1hpc.sync.packings import Packings
from r1hpc.train.checkpoint.pieces import HeldModel


@dataclass(frozen=True)
class Step:
    """One payload of a sync."""

    work: Work
    bucket: Bucket
    sizes: Counter[int]
    """Bytes of it for each courier."""


class WeightPublisher:
    """Every method is collective: all trainer ranks call it, in the same order, with the same arguments.

    What goes wrong on one rank is raised on all; what goes wrong in an engine is told by `end`, and the others go on.
    """

    def __init__(
        self,
        actor_weights: Callable[[], Mapping[str, Tensor]],
        held: HeldModel,
        shape: ModelShape,
        form: SyncForm,
        *,
        device: torch.device,
        bucket_bytes: int,
        keep_groups: bool = True,
    ) -> None:
        """actor_weights: the host's copy "actor". device: of what is sent, and of the engine's rank beside.

        keep_groups: from one sync to the next; else the process groups of a sync end with it.
        """
        self._actor_weights = actor_weights
        self._holdings = holdings(held, dist.get_rank())
        self._shape = shape
        self._form = form
        self._device = device
        self._bucket_bytes = bucket_bytes
        self._packings: Packings | None = None
        self._groups = SyncGroups(device)
        self._keep_groups = keep_groups
        self._num_syncs = 0
        self._sync: _Sync | None = None

    def begin(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        """Plan a sync to these engines; what an earlier one left open is given up.

        full_check: compare every weight of the engines afterwards, not samples alone.
        """
        self.end()
        if self._packings is None:
            assemblies = plan_assemblies(self._shape, everyones(self._holdings))
            self._packings = Packings(assemblies, self._form, self._shape.num_experts, self._bucket_bytes)
        weights = self._weights()
        packing = self._packings.to(tuple(targets))
        samples, names = self._packings.samples(self._num_syncs, packing.routes)
        steps = [Step("load", *each) for each in zip(packing.buckets, packing.sizes, strict=True)]
        if full_check:
            steps += [replace(step, work="compare") for step in steps]
        else:
            steps.append(Step("compare", samples, payload_sizes(samples)))
        clock = Stopwatch()
        couriers = packing.routes.couriers
        groups = (self._groups.world(), self._groups.of(couriers))
        moved = [step.bucket for step in steps]
        delivery = Delivery(weights, self._form, self._device, couriers, groups, clock, moved)
        sizes = packing.sizes
        hand_over = HandOver(self._device, self._usual_bytes(sizes)) if dist.get_rank() in couriers else None
        self._sync = _Sync(steps, delivery, hand_over, clock)
        self._num_syncs += 1
        return SyncOutline(
            buckets=len(steps),
            bytes_per_gpu=max(sum(size[courier] for size in sizes) for courier in couriers),
            bucket_bytes=max(max(size.values()) for size in sizes),
            samples=() if full_check else names,
        )

    def offer(self, bucket: int) -> str | None:
        """The payload of this bucket for the engine's rank beside; null where this rank is no courier.

        It stays as it is until the next offer but one: by then the engine must have answered.
        """
        if self._sync is None:
            raise SyncError(f"bucket {bucket} is of no sync: begin one first")
        return self._sync.offer(bucket)

    def end(self) -> SyncOutcome:
        """Give the memory of the payloads back, and say what the engine's rank beside made of them."""
        if not self._keep_groups:
            self._groups.destroy()
        if self._sync is None:
            return SyncOutcome()
        sync, self._sync = self._sync, None
        outcome = sync.end()
        if self._device.type == "cuda":
            # The engine takes memory for its cache next. What an engine had open is torch's until it is asked for.
            del sync
            torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        return outcome

    def _weights(self) -> Mapping[str, Tensor]:
        weights: Mapping[str, Tensor] = {}
        failure: R1hpcError | None = None
        try:
            weights = self._actor_weights()
        except Exception as error:  # whatever it is, the others wait for this rank
            failure = as_error(error, "the host's copy of the weights")
        raise_together([failure])
        return weights

    def _usual_bytes(self, sizes: Sequence[Counter[int]]) -> int:
        """Of this courier's payloads, the largest that is no single tensor beyond the bound."""
        return max((size[dist.get_rank()] for size in sizes if size[dist.get_rank()] <= self._bucket_bytes), default=0)


class _Sync:
    """A sync that has begun, on one rank."""

    def __init__(self, steps: Sequence[Step], delivery: Delivery, hand_over: HandOver | None, clock: Stopwatch) -> None:
        self._steps = steps
        self._delivery = delivery
        self._hand_over = hand_over
        self._clock = clock
        self._nonce = secrets.token_hex(8)

    def offer(self, number: int) -> str | None:
        step = self._steps[number]
        payload = None
        if self._hand_over is not None:
            payload = self._hand_over.room(number, step.sizes[dist.get_rank()])
        self._delivery.move(step.bucket, payload)
        text = None
        if self._hand_over is not None and payload is not None:
            with self._delivery.kept_for_all(f"payload {number}"), self._clock.part("checksum"):
                text = self._order(number, step, payload, self._hand_over).serialized()
        self._delivery.raise_failures()
        return text

    def _order(self, number: int, step: Step, payload: Tensor, hand_over: HandOver) -> Order:
        key = f"{self._nonce}-{number}"
        # First: what has a ticket, and is not answered, has to be disowned.
        hand_over.ordered(number, key)
        return Order(
            work=step.work,
            first=number == 0,
            key=key,
            answer=hand_over.answer_ticket(number),
            payload=hand_over.payload_ticket(number) if payload.numel() else None,
            size=payload.numel(),
            checksum=checksum(payload),
            tensors=tuple(_placed(step.bucket, dist.get_rank())),
        )

    def end(self) -> SyncOutcome:
        if self._hand_over is None:
            return SyncOutcome((), self._clock.seconds)
        faults = self._hand_over.close()
        engine = {f"engine_{part}": seconds for part, seconds in self._hand_over.seconds.items()}
        return SyncOutcome(faults, self._clock.seconds | engine)


def _placed(bucket: Bucket, courier: int) -> list[Placed]:
    return [
        Placed(packed.sent, begin + packed.begin)
        for begin, segment in bucket.of(courier)
        for item in segment.items
        for packed in item.tensors
    ]
