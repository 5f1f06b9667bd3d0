"""Memory between two processes: what is in it, what is refused, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from r1hpc.sync.checksum import checksum
from r1hpc.sync.encoding import SentTensor
from r1hpc.sync.hand_over import HandOver
from r1hpc.sync.order import ANSWER_BYTES, Answer, Order, Placed
from r1hpc.sync.outline import SyncError
from r1hpc.sync.shared_memory import HostMemory, opened
from tests.sync.beside import order_of

CPU = torch.device("cpu")

SENDER = """
import json, sys, time, torch
from r1hpc.sync.shared_memory import HostMemory
memory = HostMemory(1 << 20)
memory.tensor.copy_(torch.arange(1 << 20) % 251)
print(json.dumps(memory.ticket()), flush=True)
time.sleep(60)
"""


@pytest.fixture
def sender() -> Iterator[subprocess.Popen[str]]:
    """A process that has filled some memory."""
    process = subprocess.Popen([sys.executable, "-c", SENDER], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def shared_names() -> set[str]:
    """What has a name in shared memory."""
    return set(os.listdir("/dev/shm"))


def test_memory_of_a_killed_sender_is_whole_while_it_is_open_and_leaves_no_name(
    sender: subprocess.Popen[str],
) -> None:
    before = shared_names()
    assert sender.stdout is not None
    ticket = json.loads(sender.stdout.readline())
    received = opened(ticket, CPU)
    assert not {name for name in shared_names() - before if "r1hpc" in name or "torch" in name}
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    assert torch.equal(received, (torch.arange(1 << 20) % 251).byte())
    with pytest.raises(SyncError, match="the trainer beside this engine has ended"):
        opened(ticket, CPU)


def test_a_number_that_became_another_file_is_refused_and_not_written(tmp_path: Path) -> None:
    memory = HostMemory(64)
    ticket = memory.ticket()
    memory.close()
    number = int(ticket["path"].rsplit("/", 1)[1])
    innocent = tmp_path / "innocent"
    innocent.write_bytes(b"x" * 64)
    fd = os.open(innocent, os.O_RDWR)
    os.dup2(fd, number)  # most often it has it already
    try:
        with pytest.raises(SyncError, match=f"is {innocent}, not the payload r1hpc-sync-"):
            opened(ticket, CPU)
        other = HostMemory(64)
        os.dup2(int(other.ticket()["path"].rsplit("/", 1)[1]), number)
        with pytest.raises(SyncError, match="not the payload"):
            opened(ticket, CPU)
        other.close()
    finally:
        for descriptor in {fd, number}:
            os.close(descriptor)
    assert innocent.read_bytes() == b"x" * 64


def test_closing_leaves_what_another_has_open() -> None:
    memory = HostMemory(16)
    memory.tensor.fill_(7)
    received = opened(memory.ticket(), CPU)
    memory.close()
    assert received.tolist() == [7] * 16


@pytest.mark.parametrize("place", [0, 8, (1 << 23) + 16, (1 << 23) + 24])
def test_a_checksum_notices_one_bit_and_an_exchange(place: int) -> None:
    data = torch.zeros((1 << 23) + 32, dtype=torch.uint8)
    data[place] = 1
    sums = {checksum(data)}
    data[place] = 3
    sums.add(checksum(data))
    data[place], data[place + 1] = 0, 1
    sums.add(checksum(data))
    data[place + 1] = 0
    sums.add(checksum(data))
    assert len(sums) == 4


def test_a_checksum_is_the_weighted_sum_of_its_words() -> None:
    words = torch.tensor([5, -7, 2**40])
    assert checksum(words.view(torch.uint8)) == 5 * 1 - 7 * 3 + 2**40 * 5
    assert checksum(torch.empty(0, dtype=torch.uint8)) == 0


def order(key: str = "k") -> Order:
    sent = SentTensor("a.weight", torch.float8_e4m3fn, (2, 8))
    answer = HostMemory(ANSWER_BYTES)
    return Order("load", key, answer.ticket(), None, 16, -3, (Placed(sent, 256),))


def test_an_order_comes_out_as_it_went_in() -> None:
    sent = order()
    assert order_of(sent.serialized()) == sent
    payload = torch.arange(272).byte()
    view = sent.tensors[0].view(payload)
    assert view.dtype == torch.float8_e4m3fn
    assert view.view(torch.uint8).flatten().tolist() == list(range(256 % 256, 16))


@pytest.mark.parametrize("fault", [None, "wrong \N{SNOWMAN}", "x" * 100_000])
def test_an_answer_comes_out_as_it_went_in(fault: str | None) -> None:
    memory = torch.zeros(ANSWER_BYTES, dtype=torch.uint8)
    assert Answer.read(memory) is None
    Answer("key", fault, {"load": 0.25}).write(memory)
    found = Answer.read(memory)
    assert found is not None
    assert (found.key, found.seconds) == ("key", {"load": 0.25})
    assert found.fault == (fault and fault[: ANSWER_BYTES // 8])


def test_the_first_fault_of_the_other_side_is_told_and_a_late_answer_is_none() -> None:
    hand_over = HandOver(CPU, 64)
    for number in range(4):
        room = hand_over.room(number, 32)
        assert room.numel() == 32
        hand_over.ordered(number, f"key-{number}")
        # It answers 0; 1 with a fault; 2 as if it were 0; 3 not at all.
        if number < 3:
            memory = opened(hand_over.answer_ticket(number), CPU)
            Answer(f"key-{number % 2}", "no room" if number == 1 else None, {"open": 1.0}).write(memory)
    assert hand_over.close() == ("payload 1: no room",)
    assert hand_over.seconds == {"open": 2.0}  # of the two that were meant
    late = HandOver(CPU, 64)
    late.ordered(0, "key")
    Answer("another", None).write(opened(late.answer_ticket(0), CPU))
    assert late.close() == ("payload 0: the engine's rank did not answer; its log says why",)


def test_room_for_one_large_tensor_does_not_stay() -> None:
    hand_over = HandOver(CPU, 64)
    hand_over.room(0, 1024)
    assert hand_over.payload_ticket(0)["size"] == 1024
    hand_over.room(2, 48)
    assert hand_over.payload_ticket(2)["size"] == 64
    assert hand_over.close() == ()
