"""Publishing by rename: all or nothing, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from r1hpc.publish import publish_json, publish_text, publishing, remove_stale


def old(file: Path) -> Path:
    os.utime(file, (1, 1))
    return file


def test_a_failed_writer_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    publish_text(path, "old")
    with pytest.raises(RuntimeError), publishing(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_sorted_and_ends_in_a_newline(tmp_path: Path) -> None:
    publish_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'


def test_the_temporary_file_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with publishing(tmp_path / "a", tmp_path / "work") as stream:
        stream.write(b"x")
        assert [file.parent.name for file in tmp_path.rglob(".a.*.tmp")] == ["work"]
    assert (tmp_path / "a").read_bytes() == b"x"
    assert list((tmp_path / "work").iterdir()) == []


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = old_file = tmp_path / ".a.host.1.tmp"
    old_file.write_bytes(b"half")
    old(left)
    other = tmp_path / ".b.host.1.tmp"
    other.write_bytes(b"half")
    old(other)
    remove_stale(tmp_path / "a")
    assert list(tmp_path.iterdir()) == [other]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    held, young = tmp_path / ".a.host.1.tmp", tmp_path / ".a.host.2.tmp"
    held.write_bytes(b"half")
    young.write_bytes(b"")
    old(held)
    with open(held, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_stale(tmp_path / "a")
        assert held.exists() and young.exists()
    remove_stale(tmp_path / "a")
    assert not held.exists()
