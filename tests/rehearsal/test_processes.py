"""Finding and ending the processes of a cluster, on real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.layout import MARK, Layout
from r1hpc.rehearsal.processes import ProcessId, cluster_processes, end_all, network_namespace, read_stat

WaitFor = Callable[[Callable[[], object], float], None]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "spool" / "node01").mkdir(parents=True)
    return Layout(tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def popen(*argv: str, **options: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, **options)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield popen
    for process in started:
        process.kill()
        process.wait()


Start = Callable[..., subprocess.Popen[bytes]]


def test_marked_process_and_its_children_without_mark_are_found(
    layout: Layout, start: Start, wait_for: WaitFor
) -> None:
    marked = {"PATH": os.environ["PATH"], MARK: layout.identity}
    parent = start("sh", "-c", "env -i sleep 60 & wait", env=marked)
    wait_for(lambda: sorted(stat.name for stat in cluster_processes(layout).values()) == ["sh", "sleep"], 5)
    end_all(lambda: cluster_processes(layout))
    assert parent.wait(timeout=5) == -9
    assert cluster_processes(layout) == {}


def test_process_of_another_cluster_is_not_found(layout: Layout, start: Start) -> None:
    other = Layout(layout.directory / "other")
    start("sleep", "60", env={MARK: other.identity})
    assert cluster_processes(layout) == {}
    assert len(cluster_processes(other)) == 1


def test_process_in_the_spool_directory_is_found_without_any_mark(
    layout: Layout, start: Start, wait_for: WaitFor
) -> None:
    stepd = start("sleep", "60", cwd=layout.spool / "node01", env={})
    wait_for(lambda: list(cluster_processes(layout)) == [stepd.pid], 5)


def test_task_is_known_by_the_cluster_name_that_slurm_gives_it(layout: Layout, start: Start, wait_for: WaitFor) -> None:
    task = start("sleep", "60", env={"SLURM_CLUSTER_NAME": layout.cluster_name})
    wait_for(lambda: list(cluster_processes(layout)) == [task.pid], 5)


def test_caller_and_its_ancestors_are_spared(layout: Layout, start: Start) -> None:
    # The shell and Python below it are marked, as under `run -- python -m r1hpc.rehearsal down`.
    code = f"""if True:
        from pathlib import Path
        from r1hpc.rehearsal.layout import Layout
        from r1hpc.rehearsal.processes import cluster_processes
        print(len(cluster_processes(Layout(Path({str(layout.directory)!r})))))"""
    python = shutil.which("python3") or "python3"
    shell = start(
        *("sh", "-c", '"$0" -c "$1"; true', python, code),
        env=os.environ | {MARK: layout.identity, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
    )
    output, _ = shell.communicate(timeout=20)
    assert output.decode().strip() == "0"


def test_name_with_parentheses_and_spaces_is_read(tmp_path: Path, start: Start, wait_for: WaitFor) -> None:
    program = tmp_path / "a) S 1 (b"
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    process = start(str(program), "60")

    def is_read() -> bool:
        stat = read_stat(process.pid)
        return stat is not None and (stat.name, stat.parent) == ("a) S 1 (b", os.getpid())

    wait_for(is_read, 5)


def test_reused_pid_is_another_process() -> None:
    mine = ProcessId.of(os.getpid())
    assert mine.alive()
    assert not ProcessId(mine.pid, mine.started + 1).alive()


def test_zombie_is_not_alive(start: Start, wait_for: WaitFor) -> None:
    process = start("true")  # not waited for: it stays a zombie

    def is_zombie() -> bool:
        stat = read_stat(process.pid)
        return stat is not None and stat.state == "Z"

    wait_for(is_zombie, 5)
    assert not ProcessId.of(process.pid).alive()


def test_process_that_stays_is_named_with_its_state(start: Start, wait_for: WaitFor) -> None:
    process = start("true")
    wait_for(lambda: not ProcessId.of(process.pid).alive(), 5)  # a zombie, which no signal ends
    with pytest.raises(RehearsalError, match=rf"still there 0.1 s after SIGKILL: {process.pid} \(true, state Z\)"):
        end_all(lambda: [process.pid], deadline_s=0.1)


def test_own_network_namespace_is_readable() -> None:
    assert network_namespace() == os.readlink("/proc/self/ns/net")
