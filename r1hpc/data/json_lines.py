"""One JSON object a line: the file is indexed once, its texts stay on disk."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import xxhash
from numpy.typing import NDArray

from r1hpc.data.errors import DataError
from r1hpc.data.rows import RowError, digest_of, json_kind, open_file

_UTF8_MARK = b"\xef\xbb\xbf"


class JsonLines:
    """Rows of a jsonl file; blank lines are no rows. 16 bytes of memory a row, whatever its length."""

    def __init__(self, path: Path) -> None:
        """Find where each line begins, in one pass. Raises DataError where the file cannot be read or was cut short."""
        self.path = path
        begins, lines = array("q"), array("q")
        digest = xxhash.xxh3_128()
        at = 0
        with open_file(path) as stream:
            self._stamp = _stamp(stream)
            for number, line in enumerate(stream, 1):
                digest.update(line)
                mark = len(_UTF8_MARK) if number == 1 and line.startswith(_UTF8_MARK) else 0
                if line[mark:].strip():
                    begins.append(at + mark)
                    lines.append(number)
                at += len(line)
        begins.append(at)
        self.digest = digest.hexdigest()
        # [rows + 1] where each row begins, and where the last one ends; [rows] its line, from 1.
        self._begins = numpy.array(begins, dtype=numpy.int64)
        self._lines = numpy.array(lines, dtype=numpy.int64)
        self._refuse_a_cut()

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, rows: Sequence[int] | NDArray[numpy.int64]) -> Iterator[dict[str, Any] | RowError]:
        """These rows, in this order. Raises DataError if the file is another one by now."""
        with open_file(self.path) as stream:
            self._refuse_another_file(stream)
            for row in rows:
                yield _parsed(self._text(stream, int(row)))

    def place(self, row: int) -> str:
        """`line 17`"""
        return f"line {self._lines[row]}"

    def _text(self, stream: BinaryIO, row: int) -> bytes:
        begin, end = int(self._begins[row]), int(self._begins[row + 1])
        return os.pread(stream.fileno(), end - begin, begin)

    def _refuse_a_cut(self) -> None:
        if not len(self):
            return
        with open_file(self.path) as stream:
            last = self._text(stream, len(self) - 1)
        # Only one bad line to the count of bad lines, but every line that should follow is missing too.
        if not last.endswith(b"\n") and isinstance(bad := _parsed(last), RowError):
            raise DataError(
                f"{self.path}: ends within {self.place(len(self) - 1)} ({bad}): the file was cut short, and what "
                "should follow is missing; copy it again"
            )

    def _refuse_another_file(self, stream: BinaryIO) -> None:
        stamp = _stamp(stream)
        if stamp == self._stamp:
            return
        # Touched, or copied anew: only its content counts.
        if (digest := digest_of(stream)) != self.digest:
            raise DataError(
                f"{self.path}: was changed while it was in use: xxh3 was {self.digest}, is {digest}; put the file "
                "back and resume, or start a new run with the new file"
            )
        self._stamp = stamp


def _stamp(stream: BinaryIO) -> tuple[int, int]:
    status = os.fstat(stream.fileno())
    return status.st_size, status.st_mtime_ns


def _parsed(text: bytes) -> dict[str, Any] | RowError:
    try:
        # Decoded here: json would guess UTF-16 from zero bytes.
        value = json.loads(text.rstrip(b"\r\n").decode())
    except UnicodeDecodeError as error:
        return RowError("is not UTF-8", f"byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return RowError("is not JSON", f"{error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits; brackets without end
        return RowError("is JSON that cannot be read", str(error))
    if not isinstance(value, dict):
        return RowError("is not an object", f"it is {json_kind(value)}; a line is {{...}}")
    return value
