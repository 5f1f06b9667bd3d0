"""progress.json of an attempt: what its driver does now, for `r1hpc.status`. Standard library only."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir

logger = logging.getLogger(__name__)


def say_progress(attempt: AttemptDir, what: str, iteration: int | None = None, detail: str = "") -> None:
    """Publish that the driver does `what` ("rollout", "update", ...), and how far it is (`detail`, a sentence).

    `since` stays while what and iteration do. A file system that does not take it is only logged: nothing depends on
    it.
    """
    before, now = read_progress(attempt), time.time()
    goes_on = (before.get("what"), before.get("iteration")) == (what, iteration)
    since = before.get("since", now) if goes_on else now
    record = {"what": what, "iteration": iteration, "since": since, "now": now, "detail": detail}
    try:
        publish_json(attempt.progress, record)
    except OSError as error:
        logger.warning("%s cannot be written: %s", attempt.progress, error)


def read_progress(attempt: AttemptDir) -> dict[str, Any]:
    """{} where the driver has said nothing yet."""
    try:
        value = json.loads(attempt.progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
