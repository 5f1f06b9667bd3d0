"""Units over forked workers: order, errors, deaths, and nobody left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError


def progress(lines: list[str], total: int = 100) -> Progress:
    return Progress("work", total, lines.append, every_s=0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_results_come_in_the_order_of_the_units() -> None:
    def work(unit: int, advance: Advance) -> int:
        time.sleep(0.01 * (5 - unit))
        advance(20)
        return unit * unit

    lines: list[str] = []
    done = run_units([0, 1, 2, 3, 4], work, 3, progress(lines))
    assert done.results == [0, 1, 4, 9, 16]
    assert done.peak_bytes > 1 << 20
    assert lines[-1].startswith("work: 100 B in ")


def test_no_units_are_no_work() -> None:
    assert run_units([], lambda unit, advance: unit, 2, progress([], 0)).results == []


def test_an_error_for_people_arrives_as_itself_and_ends_the_others(tmp_path: Path) -> None:
    def work(unit: int, advance: Advance) -> None:
        if unit:
            raise CheckpointError("model-2: is cut short")
        (tmp_path / "pid").write_text(str(os.getpid()))
        try:
            time.sleep(60)
        finally:
            (tmp_path / "tidied").touch()

    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"^model-2: is cut short$"):
        run_units([0, 1], work, 2, progress([]))
    assert time.monotonic() - began < 20
    assert (tmp_path / "tidied").exists()
    assert not alive(int((tmp_path / "pid").read_text()))


def test_any_other_error_brings_its_unit_and_traceback() -> None:
    def work(unit: str, advance: Advance) -> None:
        raise KeyError("weight_map")

    with pytest.raises(CheckpointError, match=r"(?s)^file-7: Traceback.*KeyError: 'weight_map'"):
        run_units(["file-7"], work, 1, progress([]))


def test_a_killed_worker_is_named_with_its_unit() -> None:
    def work(unit: str, advance: Advance) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(CheckpointError, match=r"the worker of file-7 was ended \(SIGKILL\)"):
        run_units(["file-7"], work, 1, progress([]))


def test_workers_go_on_under_slurms_term() -> None:
    def work(unit: int, advance: Advance) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return unit

    assert run_units([7], work, 1, progress([])).results == [7]


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    def work(unit: int, advance: Advance) -> None:
        (tmp_path / f"pid{unit}").write_text(str(os.getpid()))
        time.sleep(60)

    parent = os.fork()
    if parent == 0:
        run_units([0, 1], work, 2, progress([]))
        os._exit(0)
    deadline = time.monotonic() + 20
    while len(list(tmp_path.glob("pid?"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)
    pids = [int(file.read_text()) for file in tmp_path.glob("pid?")]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert len(pids) == 2
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def test_progress_says_done_total_rate_and_time_left() -> None:
    lines: list[str] = []
    now = [0.0]
    told = Progress("convert, task 1 of 4", 10_000_000_000, lines.append, every_s=10, clock=lambda: now[0])
    now[0] = 1.0
    told.update(10)
    assert lines == []
    now[0] = 4.0
    told.update(2_000_000_000)
    now[0] = 5.0
    told.update(2_500_000_000)
    assert lines == ["convert, task 1 of 4: 2.00 GB of 10.0 GB, 500 MB/s, 16 s left"]
    now[0] = 20.0
    told.finish()
    assert lines[-1] == "convert, task 1 of 4: 10.0 GB in 20 s, 500 MB/s"
