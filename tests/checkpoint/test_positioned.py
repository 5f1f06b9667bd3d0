"""Bytes written at places in a file arrive there, whatever their number."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from r1hpc.checkpoint.positioned import FLUSH_BYTES, WRITE_BYTES, PositionedWriter


def test_pieces_larger_than_one_write_arrive_whole_and_in_place(tmp_path: Path) -> None:
    data = bytes(range(256)) * (2 * WRITE_BYTES // 256) + b"the end"
    with open(tmp_path / "file", "wb") as stream:
        writer = PositionedWriter(stream.fileno())
        writer.write_at(memoryview(data), 11)
        writer.write_at(memoryview(b"in front..."), 0)
    assert (tmp_path / "file").read_bytes() == b"in front..." + data


def test_beginning_the_writeback_changes_nothing(tmp_path: Path) -> None:
    piece = bytes(range(1, 129)) * (WRITE_BYTES // 128)
    with open(tmp_path / "file", "wb") as stream:
        writer = PositionedWriter(stream.fileno())
        for number in range(FLUSH_BYTES // WRITE_BYTES + 1):
            writer.write_at(memoryview(piece), number * WRITE_BYTES)
    assert (tmp_path / "file").read_bytes() == piece * (FLUSH_BYTES // WRITE_BYTES + 1)


def test_a_full_disk_is_an_error() -> None:
    with open("/dev/full", "wb", buffering=0) as stream, pytest.raises(OSError) as caught:
        PositionedWriter(stream.fileno()).write_at(memoryview(b"x"), 0)
    assert caught.value.errno == errno.ENOSPC
