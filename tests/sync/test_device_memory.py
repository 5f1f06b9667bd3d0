"""Memory of a GPU between two processes."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from r1hpc.sync.checksum import checksum
from r1hpc.sync.shared_memory import DeviceMemory, opened

pytestmark = pytest.mark.gpu
SIZE = 1 << 24


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_two_payloads_in_turn_arrive_as_they_were_written() -> None:
    """And a third in the memory of the first: every opening has its own ticket."""
    device = torch.device("cuda", 0)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_receive, args=(theirs,))
    process.start()
    try:
        memories = [DeviceMemory(SIZE, device) for _ in range(2)]
        for turn in range(3):
            memory = memories[turn % 2]
            memory.tensor.copy_(torch.randint(0, 256, (SIZE,), dtype=torch.uint8))
            ours.send(memory.ticket())
            assert ours.recv() == checksum(memory.tensor) == checksum(memory.tensor.cpu())
        ours.send(memories[0].ticket() | {"uuid": "another"})
        assert "each rank has" in ours.recv()
    finally:
        ours.send(None)
        process.join(30)
        process.kill()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_whose_ticket_nobody_opened_comes_back() -> None:
    """As that for an engine that was killed."""
    device = torch.device("cuda", 0)
    before = torch.cuda.memory_allocated(device)
    memory = DeviceMemory(SIZE, device)
    memory.ticket()
    memory.disown()
    memory.close()
    torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
    assert torch.cuda.memory_allocated(device) == before


def _receive(pipe: Connection) -> None:
    device = torch.device("cuda", 0)
    while (ticket := pipe.recv()) is not None:
        try:
            pipe.send(checksum(opened(ticket, device)))
        except Exception as error:
            pipe.send(str(error))
