"""metrics.jsonl across kills: each iteration once, whole lines only, nothing of what was recorded forgotten."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.metrics.history import append_line, dropped_path, publish_lines, read_history, rewind
from tests.metrics.reports import record


def _iterations(path: Path) -> list[int]:
    return [line["iteration"] for line in read_history(path).lines]


def _recorded(path: Path, count: int) -> None:
    for iteration in range(count):
        append_line(path, record(iteration).to_json())


def _in_child(work: Callable[[], None]) -> int:
    """Its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(70)
    return os.waitpid(child, 0)[1]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.jsonl").lines == ()
    assert rewind(tmp_path / "metrics.jsonl", 0).lines == ()
    assert list(tmp_path.iterdir()) == []


def test_killed_at_any_byte_of_a_line_the_next_attempt_has_each_iteration_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 2)
    whole = path.read_bytes()
    last = json.dumps(record(2).to_json()).encode() + b"\n"
    for cut in range(len(last) + 1):
        path.write_bytes(whole + last[:cut])
        seen = read_history(path)
        assert [line["iteration"] for line in seen.lines] == ([0, 1, 2] if cut >= len(last) - 1 else [0, 1])
        assert seen.torn == (0 < cut < len(last) - 1)
        rewind(path, 2)
        append_line(path, record(2, attempt="41-r1").to_json())
        assert [(line["iteration"], line["attempt"]) for line in read_history(path).lines] == [
            (0, "41-r0"),
            (1, "41-r0"),
            (2, "41-r1"),
        ]


def test_a_resumed_attempt_goes_on_behind_a_last_line_without_its_end(tmp_path: Path) -> None:
    """The kill came between the line and its newline, and the iteration counts: its commit was complete."""
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 2)
    path.write_bytes(path.read_bytes()[:-1])
    rewind(path, 2)
    append_line(path, record(2).to_json())
    assert _iterations(path) == [0, 1, 2]


def test_lines_that_are_taken_back_are_kept_beside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 5)
    rewind(path, 3)
    assert _iterations(path) == [0, 1, 2]
    assert _iterations(dropped_path(path)) == [3, 4]
    append_line(path, record(3, attempt="41-r1").to_json())
    rewind(path, 3)
    dropped = [(line["iteration"], line["attempt"]) for line in read_history(dropped_path(path)).lines]
    assert dropped == [(3, "41-r0"), (4, "41-r0"), (3, "41-r1")]


def test_nothing_is_written_where_nothing_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 3)
    before = path.stat()
    rewind(path, 3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not dropped_path(path).exists()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nth", [1, 2])
def test_killed_while_it_takes_lines_back_every_line_is_somewhere(tmp_path: Path, nth: int, when: str) -> None:
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 4)
    replace, calls = os.replace, []

    def dying(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == nth and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        os.replace = dying  # type: ignore[assignment]
        rewind(path, 2)

    assert os.WTERMSIG(_in_child(work)) == signal.SIGKILL
    assert {*_iterations(path), *_iterations(dropped_path(path))} == {0, 1, 2, 3}
    rewind(path, 2)
    assert (_iterations(path), _iterations(dropped_path(path))) == ([0, 1], [2, 3])


def test_a_disk_that_takes_half_a_line_keeps_none_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    _recorded(path, 2)
    size = path.stat().st_size

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
        try:
            append_line(path, record(2).to_json())
        except OSError:
            os._exit(5)

    assert os.waitstatus_to_exitcode(_in_child(work)) == 5
    assert path.stat().st_size == size
    assert read_history(path).torn == 0


def test_what_others_wrote_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    publish_lines(path, [record(0).to_json()])
    with path.open("ab") as stream:
        stream.write(b'[1]\n{"iteration": "x"}\n{"iteration": true}\n\xff\n')
    append_line(path, record(1).to_json())
    assert (_iterations(path), read_history(path).torn) == ([0, 1], 4)
