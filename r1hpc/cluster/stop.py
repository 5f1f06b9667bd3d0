"""The driver's ear: its agent writes stop requests to its standard input, and closes it by dying."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import IO


class StopListener:
    """Collects stop requests in the background; whoever can stop asks it at a boundary."""

    def __init__(self, stream: IO[str]) -> None:
        self._requests: list[str] = []
        self._deadlines: list[float] = []
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._event = threading.Event()
        threading.Thread(target=self._listen, args=(stream,), daemon=True, name="stop-listener").start()

    @property
    def requested(self) -> str | None:
        """Who asked, `SIGTERM at node03`; None while nobody has."""
        return ", ".join(self._requests) or None

    @property
    def deadline(self) -> float | None:
        """Unix time by which the driver has to be gone, the earliest that was said; None while nobody has said one."""
        return min(self._deadlines, default=None)

    def wait(self, timeout_s: float) -> str | None:
        """Sleep, but no longer than until somebody asks; returns `requested`."""
        self._event.wait(timeout_s)
        return self.requested

    def call(self, callback: Callable[[], object]) -> None:
        """Call `callback` at each request, in the listener's thread; at once if somebody has asked already."""
        with self._lock:
            self._callbacks.append(callback)
            asked = bool(self._requests)
        if asked:
            callback()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            message = json.loads(line)
            self._take(str(message["stop"]), message.get("deadline"))
        # Nobody is left who could end us in order.
        self._take("the agent's end", time.time())

    def _take(self, request: str, deadline: float | None) -> None:
        with self._lock:
            if deadline is not None:
                self._deadlines.append(deadline)
            self._requests.append(request)
            callbacks = list(self._callbacks)
        self._event.set()
        for callback in callbacks:
            callback()
