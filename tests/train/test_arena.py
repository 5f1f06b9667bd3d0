"""One allocation for many tensors."""

from __future__ import annotations

import gc
import mmap
import resource
from pathlib import Path

import pytest
import torch

from r1hpc.train.arena import ALIGNMENT_BYTES, Arena, ArenaError, TensorSpec

CPU = torch.device("cpu")


def test_tensors_have_their_shapes_and_dtypes_and_do_not_touch_each_other() -> None:
    specs = [
        TensorSpec((3, 5), torch.bfloat16),
        TensorSpec((), torch.float32),
        TensorSpec((0, 4), torch.float32),
        TensorSpec((17,), torch.float32),
    ]
    arena = Arena(specs, CPU)
    for number, tensor in enumerate(arena.tensors):
        tensor.fill_(number)
    assert [(tuple(t.shape), t.dtype) for t in arena.tensors] == [(spec.shape, spec.dtype) for spec in specs]
    assert [sorted(set(t.flatten().tolist())) for t in arena.tensors] == [[0.0], [1.0], [], [3.0]]
    assert all(tensor.data_ptr() % ALIGNMENT_BYTES == 0 for tensor in arena.tensors)


def test_size_is_that_of_the_tensors_up_to_a_cache_line_each() -> None:
    # 30 bytes -> 64, 4 -> 64, 68 -> 128
    specs = [TensorSpec((3, 5), torch.bfloat16), TensorSpec((), torch.float32), TensorSpec((17,), torch.float32)]
    assert Arena(specs, CPU).size_bytes == 64 + 64 + 128
    # torch's pinned allocator would take 1 GiB for it
    spec = TensorSpec((136 * 1024 * 1024,), torch.float32)
    assert Arena([spec], CPU).size_bytes == 544 * 1024 * 1024


def test_memory_lies_on_pages_of_its_own_and_goes_back_when_the_last_view_has_gone() -> None:
    pages = 64
    arena = Arena([TensorSpec((pages * mmap.PAGESIZE,), torch.uint8)], CPU)
    (tensor,) = arena.tensors
    address = tensor.data_ptr()
    assert address % mmap.PAGESIZE == 0
    tensor.fill_(1)
    arena.close()
    assert arena.tensors == ()
    assert int(tensor.sum()) == pages * mmap.PAGESIZE  # a view keeps it
    mapped = _mapped(address)
    del tensor
    gc.collect()
    assert (mapped, _mapped(address)) == (True, False)


def test_memory_that_the_system_does_not_give_is_told_with_its_size() -> None:
    # 2^60 bytes: more than there are addresses.
    with pytest.raises(ArenaError, match=r"1152921504\.6 GB of host memory could not be mapped .*Cannot allocate"):
        Arena([TensorSpec((1 << 60,), torch.uint8)], CPU)


def test_an_arena_of_nothing_is_empty() -> None:
    arena = Arena([], CPU)
    assert (arena.size_bytes, arena.tensors) == (0, ())
    arena.close()


def test_memory_is_not_touched_before_it_is_written() -> None:
    before = _resident_bytes()
    arena = Arena([TensorSpec((512 * 1024 * 1024,), torch.uint8)], CPU)
    assert _resident_bytes() - before < 64 * 1024 * 1024
    assert arena.size_bytes == 512 * 1024 * 1024


def _mapped(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(bound, 16) for bound in line.split(maxsplit=1)[0].split("-"))
        if begin <= address < end:
            return True
    return False


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
