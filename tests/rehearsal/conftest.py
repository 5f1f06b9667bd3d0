"""What the tests of the private Slurm look at: the host's network and mounts, and what a cluster leaves behind."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.processes import cluster_processes

HOST_COMMANDS = (
    "ip -details link",
    "ip address",
    "ip -4 route show table all",
    "ip -6 route show table all",
    "ip netns list",
    "ip rule",
)


@pytest.fixture
def host_state() -> Callable[[], dict[str, str]]:
    """Read the links, addresses, routes, named namespaces and mounts of the host, as text."""

    def read() -> dict[str, str]:
        texts = {
            command: subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
            for command in HOST_COMMANDS
        }
        # The remaining lifetime of a leased address counts down by itself.
        texts["ip address"] = re.sub(r"_lft \S+", "_lft N", texts["ip address"])
        return texts | {"mounts": Path("/proc/self/mountinfo").read_text()}

    return read


@pytest.fixture
def nothing_left() -> Callable[[Path], None]:
    """Assert that no process, private mount or transient file of a directory's cluster is left."""

    def check(directory: Path) -> None:
        layout = Layout.at(directory)
        assert cluster_processes(layout) == {}
        assert _processes_that_see_mount_of(layout.directory) == []
        assert {path.name for path in layout.directory.iterdir()} <= {".r1hpc-rehearsal", "lock", "log", "shared"}

    return check


@pytest.fixture
def wait_for() -> Callable[[Callable[[], object], float], None]:
    """Wait until a condition holds; fail at the deadline."""

    def wait(condition: Callable[[], object], deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {deadline_s} s"
            time.sleep(0.05)

    return wait


def _processes_that_see_mount_of(directory: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(directory) in (process / "mountinfo").read_text():
                found.append(int(process.name))
        except OSError:
            continue
    return found
