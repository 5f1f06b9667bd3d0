"""When memory counts as free, by arithmetic, and who is named when it does not become so."""

from __future__ import annotations

import asyncio

import pytest

from r1hpc.actors.memory import MemoryReading
from r1hpc.colocate.free_memory import MemoryNotFree, shortages, wait_until_free

GIB = 2**30


def reading(rank: int, memory: str, free_gib: float) -> MemoryReading:
    return MemoryReading(rank, memory, int(free_gib * GIB), 80 * GIB, 4 * GIB)


class Gpus:
    """Two GPUs; the second becomes free at the `free_at`-th look."""

    def __init__(self, free_at: int) -> None:
        self.free_at = free_at
        self.looks = 0

    async def memory(self) -> list[MemoryReading]:
        self.looks += 1
        return [reading(0, "GPU 0 of a", 70), reading(1, "GPU 1 of a", 70 if self.looks >= self.free_at else 12.5)]

    async def holders(self) -> list[list[str]]:
        return [[], ["pid 812 (python) holds 57.5 GiB"]]


def test_a_gpu_has_one_rank_and_a_host_all_of_its_slots() -> None:
    gpus = [reading(0, "GPU 0 of a", 70), reading(1, "GPU 1 of a", 60)]
    assert shortages(gpus, [65 * GIB, 65 * GIB]) == {"GPU 1 of a": "GPU 1 of a: 60.0 GiB are free, 65.0 GiB are needed"}
    host = [reading(0, "host a", 100), reading(1, "host a", 99), reading(2, "host b", 99)]
    assert shortages(host, [50 * GIB] * 3) == {"host a": "host a: 99.0 GiB are free, 100.0 GiB are needed"}
    assert shortages(host, [49 * GIB] * 3) == {}


def test_memory_that_becomes_free_is_waited_for() -> None:
    gpus = Gpus(free_at=3)
    asyncio.run(wait_until_free(gpus, [65 * GIB] * 2, "trainers", 10))
    assert gpus.looks == 3


def test_memory_that_stays_taken_is_an_error_that_names_who_has_it() -> None:
    with pytest.raises(MemoryNotFree) as refused:
        asyncio.run(wait_until_free(Gpus(free_at=10**6), [65 * GIB] * 2, "trainers", 0.3))
    text = str(refused.value)
    assert text.startswith("the trainers cannot wake: 1 memories are not free after 0 s")
    assert "\n  GPU 1 of a: 12.5 GiB are free, 65.0 GiB are needed; pid 812 (python) holds 57.5 GiB" in text
    assert "GPU 0" not in text
