"""Processes of a run, found by the mark in their environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from r1hpc.cluster.processes import RUN, marked_processes


def test_a_process_is_known_by_its_whole_command_and_told_by_its_beginning() -> None:
    """However deep its program lies: some are looked for by the last word of their path."""
    run_id = f"test-{os.getpid()}-{time.time_ns()}"
    command = [sys.executable, "-c", "import time; time.sleep(60)", "a" * 90, "last-word"]
    with subprocess.Popen(command, env=os.environ | {RUN: run_id}) as process:
        try:
            deadline = time.monotonic() + 10
            while not (found := [one for one in marked_processes() if one.run_id == run_id]):
                assert time.monotonic() < deadline
            assert [one.pid for one in found] == [process.pid]
            assert found[0].command.endswith("last-word")
            assert "last-word" not in str(found[0])
        finally:
            process.kill()
