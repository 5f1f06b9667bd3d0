"""What the log of a server says about its end."""

from __future__ import annotations

import re
from pathlib import Path

_READ_BYTES = 1 << 18
_MOST_LINES = 30
_FEW_LINES = 12
_TRACEBACK = "Traceback (most recent call last):"
_NOISE = re.compile(r"warnings\.warn\(|Warning: |^\s*$")


def telling_lines(log: Path) -> list[str]:
    """The last traceback of a log; where there is none, its last lines without warnings."""
    lines = [line for line in _end_of(log) if not _NOISE.search(line)]
    starts = [index for index, line in enumerate(lines) if _TRACEBACK in line]
    if not starts:
        return lines[-_FEW_LINES:]
    return _shortened(_up_to_the_message(lines[starts[-1] :]))


def _up_to_the_message(lines: list[str]) -> list[str]:
    """A traceback and the message after it, whose first line is the first that is not indented."""
    message = next((index for index, line in enumerate(lines[1:], 1) if not line.startswith((" ", "\t"))), len(lines))
    return lines[: message + 1 + _FEW_LINES]


def _shortened(lines: list[str]) -> list[str]:
    """The first line and the last ones: the middle of a long stack is the libraries' own."""
    if len(lines) <= _MOST_LINES:
        return lines
    return [lines[0], "  ...", *lines[2 - _MOST_LINES :]]


def _end_of(log: Path) -> list[str]:
    try:
        with open(log, "rb") as stream:
            stream.seek(0, 2)
            stream.seek(max(0, stream.tell() - _READ_BYTES))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
