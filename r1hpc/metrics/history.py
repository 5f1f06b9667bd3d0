"""metrics.jsonl: whole lines appended, lines of a killed attempt taken back, and whatever is there read.

Standard library only: `r1hpc.status` reads it on a login node.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.metrics.record import NOT_FINITE, Line
from r1hpc.publish import publish_text


@dataclass(frozen=True)
class History:
    """What is recorded of a run."""

    lines: tuple[Line, ...] = ()
    """One an iteration, in their order."""
    torn: int = 0
    """Lines that are none: the writer was killed within the last, or somebody else wrote there."""

    @property
    def last(self) -> Line | None:
        """The newest iteration's."""
        return self.lines[-1] if self.lines else None


def read_history(path: Path) -> History:
    """All whole lines of a file that may be missing, or be written right now."""
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return History()
    read = [_read_line(text) for text in texts]
    lines = tuple(line for line in read if line is not None)
    return History(lines, len(read) - len(lines))


def dropped_path(path: Path) -> Path:
    """metrics.dropped.jsonl: the lines of iterations that were done again, for what they cost."""
    return path.with_name(f"{path.stem}.dropped{path.suffix}")


def rewind(path: Path, iteration: int) -> History:
    """Drop the lines from `iteration` on, which is about to be done again, and what is torn; the lines that stay.

    They are kept in `dropped_path` first. A kill at any moment leaves every line in one of the two files or in both.
    """
    history = read_history(path)
    kept = tuple(line for line in history.lines if line["iteration"] < iteration)
    dropped = [line for line in history.lines if line["iteration"] >= iteration]
    if dropped:
        before = read_history(dropped_path(path)).lines
        publish_lines(dropped_path(path), [*before, *(line for line in dropped if line not in before)])
    if dropped or history.torn or not _ends_whole(path):
        publish_lines(path, kept)
    return History(kept)


def publish_lines(path: Path, lines: Iterable[Line]) -> None:
    """The file with these lines and no others."""
    publish_text(path, "".join(map(_text, lines)))


def append_line(path: Path, line: Line) -> None:
    """Append a line and wait until it is on the disk. Raises OSError, with nothing of the line left in the file."""
    data = _text(line).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            _write(descriptor, data)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_to_last_line(path: Path, lines: Sequence[Line], more: Mapping[str, Any]) -> tuple[Line, ...]:
    """Publish `lines` with `more` in the last of them; the lines as they are now."""
    strange = {**lines[-1].get(NOT_FINITE, {}), **more.get(NOT_FINITE, {})}
    last = {**lines[-1], **more} | ({NOT_FINITE: strange} if strange else {})
    changed = (*lines[:-1], last)
    publish_lines(path, changed)
    return changed


def _text(line: Line) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _write(descriptor: int, data: bytes) -> None:
    """All of it: one write of a full disk takes a part and says so."""
    while data:
        data = data[os.write(descriptor, data) :]


def _read_line(text: str) -> Line | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    is_line = isinstance(value, dict) and type(value.get("iteration")) is int
    return value if is_line else None


def _ends_whole(path: Path) -> bool:
    """Whether the next line would not be glued to the last one."""
    try:
        with path.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                return True
            stream.seek(-1, os.SEEK_END)
            return stream.read(1) == b"\n"
    except FileNotFoundError:
        return True
