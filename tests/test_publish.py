"""Publishing by rename: all or nothing, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest

from r1hpc import publish
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
    held, elsewhere = tmp_path / ".a.host.1.tmp", tmp_path / ".a.host.2.tmp"
    for file in (held, elsewhere):
        file.write_bytes(b"half")
    old(held)
    with open(held, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        remove_stale(tmp_path / "a")
        # The other one grew a moment ago on another host, whose locks may not be seen here.
        assert held.exists() and elsewhere.exists()
    remove_stale(tmp_path / "a")
    assert not held.exists()


def test_what_a_killed_writer_left_on_this_host_is_removed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    child = os.fork()
    if not child:
        with publishing(path) as stream:
            stream.write(b"half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"half"
    remove_stale(path)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_raises_while_the_file_is_opened_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(descriptor: int) -> bool | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "_lock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_text(tmp_path / "a", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_asked_to_leave_at_any_moment_leaves_no_half_file(tmp_path: Path) -> None:
    for number in range(50):
        writer = os.fork()
        if not writer:
            _write_until_asked_to_leave(tmp_path / "a")
        end = time.monotonic() + 30
        while not list(tmp_path.glob(".a.*.tmp")):
            assert time.monotonic() < end
        time.sleep(number * 1e-5)
        os.kill(writer, signal.SIGUSR1)
        assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == 3
        assert [file.name for file in tmp_path.iterdir() if file.name != "a"] == []


def _write_until_asked_to_leave(path: Path) -> None:
    """Never returns: the test's own frames are no business of a child."""
    code = 1
    try:
        signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(3))
        while True:
            publish_text(path, "x")
    except SystemExit:
        # As any process would, let go of the error and its frames before the end: it may have come between two of them.
        code = 3
    except Exception:
        traceback.print_exc()
    os._exit(code)


def test_a_name_that_a_remover_has_seen_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, seen = publish._lock, list[Path]()

    def taken_once(descriptor: int) -> bool | None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        return lock(descriptor) if len(seen) > 1 else False

    monkeypatch.setattr(publish, "_lock", taken_once)
    with publishing(tmp_path / "a") as stream:
        stream.write(b"x")
        # What the remover does next, after it locked the first file.
        seen[0].unlink(missing_ok=True)
    assert len(seen) == 2 and (tmp_path / "a").read_bytes() == b"x"


def test_writers_and_a_remover_at_once_lose_nothing(tmp_path: Path) -> None:
    path, parent = tmp_path / "a", os.getpid()
    remover = os.fork()
    if not remover:
        while os.getppid() == parent and not (tmp_path / "end").exists():
            remove_stale(path)
        os._exit(0)
    try:
        for number in range(100):
            publish_text(path, str(number))
            assert path.read_text() == str(number)
    finally:
        (tmp_path / "end").touch()
        assert os.waitpid(remover, 0)[1] == 0
