"""The limit of open files, which a thousand connections meet first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHILD = """
import resource
from r1hpc.rollout.transport import allow_connections
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
allow_connections({count})
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limited(soft: int, hard: int, count: int) -> subprocess.CompletedProcess[str]:
    # In a child: a hard limit that was lowered cannot be raised again.
    code = CHILD.format(soft=soft, hard=hard, count=count)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(("soft", "left"), [(1024, 1256), (1500, 1500)])
def test_the_limit_is_raised_only_where_it_is_too_low(soft: int, left: int) -> None:
    assert limited(soft, 2000, 1000).stdout.strip() == str(left)


def test_a_hard_limit_that_is_too_low_is_shown_with_the_arithmetic() -> None:
    child = limited(1024, 1024, 1000)
    assert child.returncode == 1
    assert "1000 requests in flight + 256 other files = 1256 open files, but this process may have 1024" in child.stderr
