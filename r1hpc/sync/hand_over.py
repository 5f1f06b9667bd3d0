"""The memory between a courier and the engine's rank beside it: two payloads in turn, and the answer to each."""

from __future__ import annotations

import torch
from torch import Tensor

from r1hpc.sync.order import ANSWER_BYTES, Answer
from r1hpc.sync.outline import TURNS
from r1hpc.sync.shared_memory import HostMemory, SharedMemory, allocate


class HandOver:
    """Of one courier, for one sync."""

    def __init__(self, device: torch.device, usual_bytes: int) -> None:
        """usual_bytes: what a payload has at most, but for a tensor that is larger by itself."""
        self._turns = [_Turn(device, usual_bytes) for _ in range(TURNS)]
        self._fault: str | None = None
        self.seconds: dict[str, float] = {}
        """That the engine's rank has spent, by part, on all orders that it has answered."""

    def room(self, number: int, size: int) -> Tensor:
        """[size] uint8 for the payload of this number, in place of that of TURNS before, which has been answered."""
        turn = self._turns[number % TURNS]
        self._note(turn)
        return turn.room(size)

    def payload_ticket(self, number: int) -> dict[str, object]:
        """What the engine opens the payload with."""
        return self._turns[number % TURNS].payload_ticket()

    def answer_ticket(self, number: int) -> dict[str, object]:
        """What the engine opens the memory for its answer with."""
        return self._turns[number % TURNS].answer.ticket()

    def ordered(self, number: int, key: str) -> None:
        """From now on an answer to this order is expected."""
        self._turns[number % TURNS].expected = number, key

    def close(self) -> tuple[str, ...]:
        """Give all memory back; what the engine did not do, the first of it: the rest follows from that."""
        for turn in sorted(self._turns, key=lambda turn: turn.expected or (0, "")):
            self._note(turn)
            turn.close()
        return () if self._fault is None else (self._fault,)

    def _note(self, turn: _Turn) -> None:
        fault = turn.fault(self.seconds)
        self._fault = self._fault or fault


class _Turn:
    def __init__(self, device: torch.device, usual_bytes: int) -> None:
        self._device = device
        self._usual_bytes = usual_bytes
        self._memory: SharedMemory | None = None
        self._capacity = 0
        self._lent = False
        """The order that was given last has a ticket for the memory."""
        self.answer = HostMemory(ANSWER_BYTES)
        self.expected: tuple[int, str] | None = None

    def room(self, size: int) -> Tensor:
        # One tensor may be larger than all buckets: its memory must not stay.
        if size > self._capacity or self._capacity > max(size, self._usual_bytes):
            self._release()
            self._capacity = size if size > self._usual_bytes else self._usual_bytes
            self._memory = allocate(self._capacity, self._device)
        return torch.empty(0, dtype=torch.uint8) if self._memory is None else self._memory.tensor[:size]

    def payload_ticket(self) -> dict[str, object]:
        assert self._memory is not None, "there is no payload"
        self._lent = True
        return self._memory.ticket()

    def fault(self, seconds: dict[str, float]) -> str | None:
        """Why the order that was given last was not done; null where it was, or none was given. Adds what it took."""
        if self.expected is None:
            return None
        (number, key), self.expected = self.expected, None
        lent, self._lent = self._lent, False
        answer = Answer.read(self.answer.tensor)
        if answer is None or answer.key != key:
            if self._memory is not None and lent:
                self._memory.disown()
            return f"payload {number}: the engine's rank did not answer; its log says why"
        for part, spent in answer.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + spent
        return answer.fault and f"payload {number}: {answer.fault}"

    def close(self) -> None:
        self._release()
        self.answer.close()

    def _release(self) -> None:
        if self._memory is not None:
            self._memory.close()
        self._memory, self._capacity = None, 0
