"""Messages between the pool and its processes: JSON objects, in a byte stream or one a packet."""

from __future__ import annotations

import json
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
HEADER_BYTES = _LENGTH.size
Message = dict[str, Any]


def pack(message: Message) -> bytes:
    """A packet. JSON and not pickle: what a process that read a hostile answer sends must not be executed."""
    return json.dumps(message).encode("ascii")


def frame(message: Message) -> bytes:
    """A packet with its length before it, for a stream."""
    packet = pack(message)
    return _LENGTH.pack(len(packet)) + packet


def unpack(packet: bytes | bytearray) -> Message:
    message: Message = json.loads(packet)
    return message


def body_bytes(header: bytes | bytearray) -> int:
    """Length of the packet that follows a header."""
    return int(_LENGTH.unpack_from(header)[0])
