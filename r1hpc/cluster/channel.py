"""JSON messages, one a line, over a TCP socket that is never waited for."""

from __future__ import annotations

import json
import socket
from typing import Any

TRUSTED_BYTES = 1 << 20
"""May lie unsent or unread: agents exchange a few short lines."""

Message = dict[str, Any]


class Channel:
    """One end of a connection. A peer that is gone, silent on purpose or talking nonsense shows as `closed`."""

    def __init__(self, connected: socket.socket, limit_bytes: int = TRUSTED_BYTES) -> None:
        self._socket = connected
        self.limit_bytes = limit_bytes
        """A peer that lets more lie unread, or sends more without an end of line, is closed."""
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._unread = b""
        self._unsent = b""
        self.closed = False

    def send(self, message: Message) -> None:
        """Queue a message and send what the socket takes now; the rest goes with the next call."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what lies unsent, as far as the socket takes it."""
        while self._unsent and not self.closed:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                break
            except OSError:
                self.close()
        if len(self._unsent) > self.limit_bytes:
            self.close()

    def receive(self) -> list[Message]:
        """The messages that have arrived; the last ones before a close are still given."""
        while not self.closed:
            try:
                part = self._socket.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                part = b""
            self._unread += part
            if not part or len(self._unread) > self.limit_bytes:
                self.close()
        *lines, self._unread = self._unread.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):  # the latter: nested deeper than Python's stack
            messages = [None]
        if all(isinstance(message, dict) for message in messages):
            return messages
        self.close()  # no agent of ours
        return []

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self.closed = True
        self._socket.close()
