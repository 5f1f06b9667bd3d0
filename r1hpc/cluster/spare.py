"""A host that the attempt does not need stays until it ends: srun ends a step soon after its first task (--wait)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from r1hpc import exit_codes
from r1hpc.rundir import AttemptDir

_POLL_S = 2.0
_GRACE_S = 15.0
"""After a stop request the others need time to publish how they ended."""


def wait_as_spare(attempt: AttemptDir, stop_requests: Sequence[str]) -> int:
    """The attempt's exit code, once there is one; STOP_REQUESTED when it does not come after a stop request.

    Without a deadline: a run takes weeks, and a head that dies takes the whole step with it.
    """
    asked: float | None = None
    while not attempt.outcome.exists():
        if stop_requests:
            asked = asked or time.monotonic()
            if time.monotonic() - asked > _GRACE_S:
                return exit_codes.STOP_REQUESTED
        time.sleep(_POLL_S)
    return int(json.loads(attempt.outcome.read_text(encoding="utf-8"))["exit_code"])
