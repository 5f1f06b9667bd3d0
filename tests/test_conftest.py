"""What holds for every test, whichever run before it and however the run was started: by test runs of their own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.submit.parameters import HOME

TESTS = Path(__file__).parent


def _pytest(*arguments: str, before: tuple[str, ...] = ()) -> str:
    """What a test run in a process of its own says; it must pass."""
    command = [*before, sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED), done.stdout + done.stderr
    return done.stdout


def test_a_ray_ends_before_another_begins() -> None:
    """A process that is the driver of one cannot join another."""
    asks = re.compile(r"\bcluster: Cluster\b")
    files = [str(file) for file in sorted(TESTS.rglob("test_*.py")) if asks.search(file.read_text(encoding="utf-8"))]
    assert len(files) >= 3
    plan = _pytest("--setup-plan", *files)
    assert re.findall(r"^ *(SETUP|TEARDOWN) +\w cluster\b", plan, re.MULTILINE) == ["SETUP", "TEARDOWN"] * len(files)


def test_what_a_test_starts_can_be_interrupted() -> None:
    with subprocess.Popen(["sleep", "20"]) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


def test_so_it_can_in_a_run_that_was_started_in_the_background_of_a_script() -> None:
    said = _pytest(
        f"{__file__}::{test_what_a_test_starts_can_be_interrupted.__name__}",
        before=("sh", "-c", 'trap "" INT; exec "$@"', "background"),
    )
    assert "1 passed" in said
