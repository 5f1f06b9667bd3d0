"""The driver's ear: its agent writes stop requests to its standard input, and closes it by dying."""

from __future__ import annotations

import json
import threading
from typing import IO


class StopListener:
    """Collects stop requests in the background; whoever can stop asks it at a boundary."""

    def __init__(self, stream: IO[str]) -> None:
        self._requests: list[str] = []
        self._event = threading.Event()
        threading.Thread(target=self._listen, args=(stream,), daemon=True, name="stop-listener").start()

    @property
    def requested(self) -> str | None:
        """Who asked, `SIGTERM at node03`; None while nobody has."""
        return ", ".join(self._requests) or None

    def wait(self, timeout_s: float) -> str | None:
        """Sleep, but no longer than until somebody asks; returns `requested`."""
        self._event.wait(timeout_s)
        return self.requested

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            self._requests.append(str(json.loads(line)["stop"]))
            self._event.set()
        self._requests.append("the agent's end")
        self._event.set()
