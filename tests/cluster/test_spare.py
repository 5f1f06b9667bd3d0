"""A spare's task leaves with the attempt, never before it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.outcome import Outcome, write_outcome
from r1hpc.cluster.spare import wait_as_spare
from r1hpc.rundir import AttemptDir


def test_a_spare_leaves_with_the_attempts_exit_code(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    codes: list[int] = []
    spare = threading.Thread(target=lambda: codes.append(wait_as_spare(attempt, [])))
    spare.start()
    time.sleep(0.5)
    assert spare.is_alive()
    write_outcome(attempt.outcome, Outcome(exit_codes.NODE_LOST, "lost node02", ("node02",)))
    spare.join(10)
    assert codes == [exit_codes.NODE_LOST]
