"""Named shared memory of killed processes goes, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.processes import descendants
from r1hpc.cluster.segments import SharedSegments

MAP = """
import mmap, os, sys, time
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(descriptor, 4096)
held = mmap.mmap(descriptor, 4096)
print("mapped", flush=True)
time.sleep(60)
"""


@pytest.fixture
def segment() -> Iterator[Path]:
    path = Path(f"/dev/shm/r1hpc-test-{uuid.uuid4().hex}")
    yield path
    path.unlink(missing_ok=True)


def _mapping(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", MAP, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mapped\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_what_a_killed_process_had_mapped_is_removed(segment: Path) -> None:
    process, segments = _mapping(segment), SharedSegments()
    segments.note([process.pid])
    _kill(process)
    assert segment.exists()
    segments.remove()
    assert not segment.exists()


def test_what_another_process_has_mapped_as_well_stays(segment: Path) -> None:
    process, other, segments = _mapping(segment), _mapping(segment), SharedSegments()
    try:
        segments.note([process.pid])
        _kill(process)
        segments.remove()
        assert segment.exists()
    finally:
        _kill(other)


def test_what_was_never_seen_stays(segment: Path) -> None:
    process, segments = _mapping(segment), SharedSegments()
    _kill(process)
    segments.note([process.pid])
    segments.remove()
    assert segment.exists()


def test_a_semaphore_is_found_although_its_maker_mapped_it_under_another_name() -> None:
    make = "import multiprocessing, time; held = multiprocessing.get_context('spawn').Lock(); "
    make += "print(held._semlock.name, flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", make], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    semaphore = Path(f"/dev/shm/sem.{process.stdout.readline().strip().lstrip('/')}")
    segments, tracker = SharedSegments(), descendants(process.pid)
    try:
        segments.note([process.pid])
        for pid in tracker:  # Python's own, which would remove it
            os.kill(pid, signal.SIGKILL)
        _kill(process)
        assert semaphore.exists()
        segments.remove()
        assert not semaphore.exists()
    finally:
        semaphore.unlink(missing_ok=True)
