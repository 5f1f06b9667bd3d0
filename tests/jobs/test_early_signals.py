"""A signal in the first moments of a task, before its Python has handlers: it is neither lost nor deadly."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1hpc import exit_codes

HOME = Path(__file__).resolve().parents[2]
HOOKS = HOME / "sbatch" / "hooks.sh"
_START = f'. {HOOKS}; exec sh -c "$r1hpc_signals_later" task "$@"'
"""As the batch script starts preflight and agents."""
_STOPPED = {exit_codes.STOP_REQUESTED, -signal.SIGTERM, -signal.SIGUSR1}
"""Left in order, or was killed while it was still a shell: srun then says 143 or 138, which mean the same."""


def _start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["bash", "-c", _START, "start", *argv], cwd=HOME, stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_preflight_that_is_asked_to_stop_before_it_has_handlers_stops(tmp_path: Path, number: signal.Signals) -> None:
    for delay_s in (0.0, 0.01, 0.03, 0.06):
        # Left alone it would end with 76: no launcher has started it.
        rank = _start(sys.executable, "-m", "jobs.preflight", str(tmp_path), str(tmp_path))
        time.sleep(delay_s)
        rank.send_signal(number)
        _, words = rank.communicate(timeout=60)
        assert rank.returncode in _STOPPED, (delay_s, words)


def test_held_back_signals_are_there_when_the_task_takes_them_in() -> None:
    held = (
        "import signal, time; time.sleep(1)\n"
        "for number in (signal.SIGUSR1, signal.SIGTERM): signal.signal(number, lambda number, _: print(number))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))\n"
    )
    task = subprocess.Popen(
        ["bash", "-c", _START, "start", sys.executable, "-c", held], cwd=HOME, stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while "python" not in Path(f"/proc/{task.pid}/comm").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    task.send_signal(signal.SIGUSR1)
    task.send_signal(signal.SIGTERM)
    said, _ = task.communicate(timeout=60)
    assert task.returncode == 0
    assert sorted(map(int, said.split())) == [signal.SIGUSR1, signal.SIGTERM]


def test_where_env_cannot_hold_them_back_they_are_ignored(tmp_path: Path) -> None:
    old = tmp_path / "env"  # coreutils before 8.31
    old.write_text("#!/bin/sh\nexit 125\n")
    old.chmod(0o755)
    asks = "import signal; print(*(signal.getsignal(n).name for n in (signal.SIGUSR1, signal.SIGTERM)))"
    start = f"PATH={tmp_path}:$PATH; {_START}"
    command = ["bash", "-c", start, "start", sys.executable, "-c", asks]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["SIG_IGN", "SIG_IGN"]
