"""What the driver has published, looked for by a thread: a shared file system may hang, the agent's beat must not."""

from __future__ import annotations

import logging
import threading
import time

from r1hpc.cluster.outcome import Outcome, read_outcome
from r1hpc.rundir import AttemptDir

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0


class Lookout:
    """Reads placement.json and driver.json of one attempt, every second. Started once no process is forked any more."""

    def __init__(self, attempt: AttemptDir, pause_s: float = _PAUSE_S) -> None:
        self._attempt = attempt
        self._pause_s = pause_s
        self._thread = threading.Thread(target=self._watch, daemon=True, name="lookout")
        self._changed = threading.Condition()
        self._asked = self._looked = 0
        self.placed = False
        """Whether the driver has placed its actors."""
        self.recorded: Outcome | None = None
        """What the driver says of its end, before it closes what it has started."""
        self._recorded_at = 0.0

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    @property
    def closing_s(self) -> float:
        """Seconds since the driver's own outcome was first seen; 0 while there is none."""
        return 0.0 if self.recorded is None else time.monotonic() - self._recorded_at

    def look_again(self, patience_s: float) -> None:
        """Return after a look that began after this call, but no later than `patience_s` seconds from now."""
        with self._changed:
            self._asked += 1
            wanted = self._asked
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._looked >= wanted, patience_s):
                logger.warning("%s does not answer within %g s", self._attempt.root, patience_s)

    def _watch(self) -> None:
        while True:
            with self._changed:
                asked = self._asked
            self._look()
            with self._changed:
                self._looked = asked
                self._changed.notify_all()
                self._changed.wait_for(lambda seen=asked: self._asked > seen, self._pause_s)  # type: ignore[misc]

    def _look(self) -> None:
        try:
            self.placed = self.placed or self._attempt.placement.exists()
            if self.recorded is None and (outcome := read_outcome(self._attempt.driver)) is not None:
                self._recorded_at = time.monotonic()
                self.recorded = outcome
        except (OSError, ValueError) as error:  # a file system that comes back, perhaps
            logger.warning("%s cannot be read: %s", self._attempt.root, error)
