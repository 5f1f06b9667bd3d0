"""The parent of a server, with small programs in the server's place."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1hpc.cluster.processes import kill
from r1hpc.rollout import keeper

GROUP = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {GROUP}"


def start(code: str, grace_s: float = 5.0, scratch: str = "/nonexistent") -> subprocess.Popen[str]:
    command = [sys.executable, "-I", "-S", keeper.__file__, str(grace_s), scratch, sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def started(code: str, grace_s: float = 5.0) -> tuple[subprocess.Popen[str], list[int]]:
    """A keeper whose program is up, and the pids of the program and of its child."""
    process = start(code, grace_s)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    family = below(process.pid)
    assert len(family) == 2
    return process, family


def below(pid: int) -> list[int]:
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in below(child)]


def assert_gone(pids: list[int], deadline_s: float = 5.0) -> None:
    deadline = time.monotonic() + deadline_s
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_servers(code: int) -> None:
    assert start(f"raise SystemExit({code})").wait(10) == code


def test_the_scratch_goes_with_the_server(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    (scratch / "metrics").mkdir(parents=True)
    assert start("raise SystemExit(0)", scratch=str(scratch)).wait(10) == 0
    assert not scratch.exists()
    assert tmp_path.exists()


def test_a_signal_that_killed_the_server_shows_in_the_exit_code() -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert start(code).wait(10) == keeper.SIGNALLED + signal.SIGKILL


def test_sigterm_ends_the_server_and_what_it_started() -> None:
    process, family = started(GROUP)
    process.terminate()
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGTERM
    assert not [pid for pid in family if is_alive(pid)]


def test_a_server_deaf_to_sigterm_is_killed_after_the_grace() -> None:
    process, family = started(DEAF, grace_s=0.5)
    began = time.monotonic()
    process.terminate()
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGKILL
    assert 0.5 <= time.monotonic() - began < 5
    assert_gone(family)


def test_what_a_dead_server_leaves_is_ended() -> None:
    process, (server, child) = started(GROUP)
    kill(server, signal.SIGKILL)
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGKILL
    assert_gone([child])


def test_what_left_the_servers_process_group_is_ended_too() -> None:
    process, (server, child) = started(GROUP.replace("'60']", "'60'], start_new_session=True"))
    kill(server, signal.SIGKILL)
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGKILL
    assert not is_alive(child)


def test_everything_ends_when_the_owner_dies() -> None:
    process, family = started(DEAF, grace_s=60)
    assert process.stdin is not None
    process.stdin.close()  # what the kernel does at the owner's death
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGKILL
    assert_gone(family)


def test_the_server_ends_when_its_keeper_is_killed() -> None:
    process, (server, child) = started(DEAF, grace_s=60)
    process.kill()
    assert_gone([server])
    kill(child, signal.SIGKILL)  # SGLang's own children ask the kernel to die with their parent; this one did not


def test_a_server_started_where_sigterm_is_blocked_outlives_a_preemption_and_still_stops_politely() -> None:
    """A scheduler's SIGTERM and SIGUSR1 reach every process of a job; those of a run have both blocked."""
    blocked = (signal.SIGTERM, signal.SIGUSR1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        process, family = started(GROUP)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in blocked:
        for pid in (process.pid, *family):
            kill(pid, number)
    time.sleep(0.5)
    assert process.poll() is None
    assert [pid for pid in family if is_alive(pid)] == family
    assert process.stdin is not None
    process.stdin.write(keeper.STOP.decode())
    process.stdin.flush()
    assert process.wait(10) == keeper.SIGNALLED + signal.SIGINT
    assert not [pid for pid in family if is_alive(pid)]
