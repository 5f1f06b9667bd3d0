"""Moving one bucket between trainer ranks: parts to the assemblers, segments to the couriers. Collective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from r1hpc.checkpoint.collective import as_error, raise_together
from r1hpc.errors import R1hpcError
from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.buckets import Bucket, Item, Segment, aligned
from r1hpc.sync.catalog import Assembly
from r1hpc.sync.form import SyncForm
from r1hpc.sync.runs import Quantized, Run, encode_run, runs


@dataclass(frozen=True)
class _Room:
    """Where a run is put together."""

    segment: int
    """Its place in the bucket."""
    run: Run
    weights: Tensor
    """[E, M, N]"""


class Delivery:
    """One rank's part in moving buckets.

    Whatever fails on this rank is kept as `failure` and the exchange goes on with wrong bytes: the others wait for it.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        form: SyncForm,
        device: torch.device,
        couriers: tuple[int, ...],
        groups: tuple[ProcessGroup, ProcessGroup | None],
        clock: Stopwatch,
        buckets: Sequence[Bucket],
    ) -> None:
        """groups: of all ranks, and of the couriers, which is null on the others. buckets: all that may be moved."""
        self._weights = weights
        self._form = form
        self._device = device
        self._couriers = couriers
        self._world, self._among_couriers = groups
        self._clock = clock
        self._rank = dist.get_rank()
        needed = (sum(aligned(run.room_bytes) for _, run in self._runs(bucket)) for bucket in buckets)
        self._room_bytes = max(needed, default=0)
        self._memory: Tensor | None = None
        self.failure: R1hpcError | None = None

    def move(self, bucket: Bucket, payload: Tensor | None) -> None:
        """Fill `payload`, [size] uint8, with this courier's bytes of the bucket; null on ranks that carry nothing."""
        segments = self._places(bucket, payload)
        rooms = self._rooms(bucket)
        with self._clock.part("gather"):
            self._gather(bucket, segments, rooms)
        with self._clock.part("quantize"):
            self._encode(rooms, segments)
            self._finish()
        with self._clock.part("deliver"):
            self._deliver(bucket, segments)
            self._finish()

    def raise_failures(self) -> None:
        """Raise on every rank what has failed on any. One number is exchanged where nothing has."""
        failed = self.failure is not None
        if dist.get_world_size() > 1:  # for one rank there is no communicator, which would take memory
            flag = torch.tensor([failed], dtype=torch.int32, device=self._device)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._world)
            failed = bool(flag.item())
        if failed:
            raise_together([self.failure])

    def _places(self, bucket: Bucket, payload: Tensor | None) -> dict[int, Tensor]:
        """The bytes of each segment that this rank puts together or is given, by its place in the bucket."""
        places: dict[int, Tensor] = {}
        begin = 0
        for index, segment in enumerate(bucket.segments):
            if self._rank in segment.couriers:
                assert payload is not None
                places[index] = payload[begin : begin + segment.size]
                begin += segment.size
            elif self._rank == segment.assembler:
                places[index] = torch.empty(segment.size, dtype=torch.uint8, device=self._device)
        return places

    def _rooms(self, bucket: Bucket) -> list[_Room]:
        """Room for what this rank quantises, in the dtype that it is trained in: the same memory for every bucket.

        An allocator would keep that of one bucket where the next one's, of other sizes, does not fit into it.
        """
        if self._memory is None:
            self._memory = torch.empty(self._room_bytes, dtype=torch.uint8, device=self._device)
        rooms, begin = [], 0
        for index, run in self._runs(bucket):
            rooms.append(_Room(index, run, run.room(self._memory[begin : begin + run.room_bytes])))
            begin += aligned(run.room_bytes)
        return rooms

    def _runs(self, bucket: Bucket) -> list[tuple[int, Run]]:
        """Those that this rank quantises, each with the place of its segment in the bucket."""
        return [
            (index, run)
            for index, segment in enumerate(bucket.segments)
            if segment.assembler == self._rank
            for run in runs(segment, self._form)
        ]

    def _gather(self, bucket: Bucket, segments: Mapping[int, Tensor], rooms: Sequence[_Room]) -> None:
        """Put tensors together: in their room, or where they are sent from if nothing is done with them in between."""
        wholes = {name: whole for room in rooms for name, whole in zip(room.run.names, room.weights, strict=True)}
        arrived: list[tuple[Tensor, Tensor]] = []
        exchange: list[dist.P2POp] = []
        for index, segment in enumerate(bucket.segments):
            for item in segment.items:
                if segment.assembler != self._rank:
                    self._send_parts(item.assembly, exchange)
                    continue
                whole = wholes.get(item.assembly.name.hf)
                if whole is None:
                    whole = _view(item, 0, segments[index])
                self._receive_parts(item.assembly, whole, exchange, arrived)
        _exchange(exchange)
        for place, part in arrived:
            place.copy_(part.view(place.dtype).view(place.shape))

    def _receive_parts(
        self, assembly: Assembly, whole: Tensor, exchange: list[dist.P2POp], arrived: list[tuple[Tensor, Tensor]]
    ) -> None:
        for part in assembly.parts:
            place = whole[part.slices(assembly.name)]
            if part.holding.rank == self._rank:
                place.copy_(part.holding.take(self._weights, part.box).view(place.shape), non_blocking=True)
            elif place.is_contiguous():
                exchange.append(dist.P2POp(dist.irecv, _bytes(place), part.holding.rank, self._world))
            else:
                room = torch.empty(place.numel() * place.itemsize, dtype=torch.uint8, device=self._device)
                exchange.append(dist.P2POp(dist.irecv, room, part.holding.rank, self._world))
                arrived.append((place, room))

    def _send_parts(self, assembly: Assembly, exchange: list[dist.P2POp]) -> None:
        for part in assembly.parts:
            if part.holding.rank == self._rank:
                taken = part.holding.take(self._weights, part.box).to(self._device, non_blocking=True).contiguous()
                exchange.append(dist.P2POp(dist.isend, _bytes(taken), assembly.assembler, self._world))

    def _encode(self, rooms: Sequence[_Room], segments: Mapping[int, Tensor]) -> None:
        quantized: list[Quantized] = []
        for room in rooms:
            with self.kept_for_all(_encoding(room.run)):
                places = room.run.places(segments[room.segment])
                quantized.append(encode_run(room.run, room.weights, self._form, places))
        # To look at one waits for the device, so it is done once for all.
        if quantized and not bool(torch.stack([each.is_finite() for each in quantized]).all()):
            for each in quantized:
                with self.kept_for_all(_encoding(each.run)):
                    each.check()

    @contextmanager
    def kept_for_all(self, doing: str) -> Iterator[None]:
        """Keep what fails in here for `raise_failures`; `doing` says it where it does not name itself."""
        try:
            yield
        except Exception as error:
            failure = as_error(error, doing)
            # Its frames hold parts of the payload, whose memory the engine needs next.
            self.failure = self.failure or failure.with_traceback(None)

    def _deliver(self, bucket: Bucket, segments: Mapping[int, Tensor]) -> None:
        exchange: list[dist.P2POp] = []
        for index, segment in enumerate(bucket.segments):
            for courier in self._addressees(segment):
                if self._rank == segment.assembler:
                    exchange.append(dist.P2POp(dist.isend, segments[index], courier, self._world))
                elif self._rank == courier:
                    exchange.append(dist.P2POp(dist.irecv, segments[index], segment.assembler, self._world))
        _exchange(exchange)
        if self._rank not in self._couriers or len(self._couriers) == 1:
            return
        works = [
            dist.broadcast(segments[index], src=self._source(segment), group=self._among_couriers, async_op=True)
            for index, segment in enumerate(bucket.segments)
            if self._is_for_all(segment)
        ]
        for work in works:
            work.wait()

    def _addressees(self, segment: Segment) -> list[int]:
        """Whom the assembler sends it to: of what is for all, one courier if it is none itself, who broadcasts it."""
        if self._is_for_all(segment):
            return [courier for courier in [self._source(segment)] if courier != segment.assembler]
        return [courier for courier in segment.couriers if courier != segment.assembler]

    def _is_for_all(self, segment: Segment) -> bool:
        return segment.couriers == self._couriers

    def _source(self, segment: Segment) -> int:
        return segment.assembler if segment.assembler in self._couriers else self._couriers[0]

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _encoding(run: Run) -> str:
    return f"{run.names[0]}: could not be encoded"


def _exchange(operations: list[dist.P2POp]) -> None:
    """All at once: ranks list the messages between any two in the same order, and none waits for another."""
    if operations:
        for work in dist.batch_isend_irecv(operations):
            work.wait()


def _view(item: Item, number: int, segment: Tensor) -> Tensor:
    packed = item.tensors[number]
    data = segment[packed.begin : packed.begin + packed.sent.size_bytes]
    return data.view(packed.sent.dtype).view(packed.sent.shape)


def _bytes(tensor: Tensor) -> Tensor:
    """Its memory: gloo and NCCL differ in the dtypes that they know."""
    return tensor.view(-1).view(torch.uint8)
