"""What a prompt file is to the rest: numbered rows, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy
import xxhash
from numpy.typing import NDArray

from r1hpc.data.errors import DataError

_CHUNK_BYTES = 16 << 20


class RowError(Exception):
    """One row that is no prompt; rows are counted by `kind`, `detail` is of this row."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


class Rows(Protocol):
    """The rows of a file, of whatever format."""

    path: Path
    digest: str
    """xxh3 of the file's bytes."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int] | NDArray[numpy.int64]) -> Iterator[dict[str, Any] | RowError]:
        """These rows, in this order; a row that is no object comes as the error that says why. Raises DataError."""

    def place(self, row: int) -> str:
        """Where a person finds the row: `line 17`."""


def json_kind(value: object) -> str:
    """What a person calls a JSON value: `a list`, `null`."""
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def open_file(path: Path) -> BinaryIO:
    """Open for reading. Raises DataError where that cannot be done."""
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def digest_of(stream: BinaryIO) -> str:
    """xxh3 of what is left of the stream."""
    digest = xxhash.xxh3_128()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
