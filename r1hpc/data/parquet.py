"""Parquet prompt files, where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from r1hpc.data.errors import DataError
from r1hpc.data.rows import RowError, digest_of, open_file


class ParquetRows:
    """Rows of a parquet file. Its table is in memory once, as arrow's columns: a row becomes Python when read."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where pyarrow is missing or the file cannot be read."""
        try:
            parquet = import_module("pyarrow.parquet")
        except ImportError as error:
            raise DataError(
                f"{path}: is parquet, which needs pyarrow, and that is not installed: pip install pyarrow, or write "
                "the file as jsonl (one JSON object a line)"
            ) from error
        self.path = path
        with open_file(path) as stream:
            self.digest = digest_of(stream)
        try:
            self._table: Any = parquet.read_table(path)
        except Exception as error:  # of pyarrow's own types, and OSError
            raise DataError(f"{path}: pyarrow cannot read it: {error}") from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def read(self, rows: Sequence[int] | NDArray[numpy.int64]) -> Iterator[dict[str, Any] | RowError]:
        """These rows, in this order."""
        for row in rows:
            try:
                yield self._table.slice(int(row), 1).to_pylist()[0]
            except ValueError as error:  # a text that is not UTF-8, a time that Python does not have
                yield RowError("cannot be read", str(error))

    def place(self, row: int) -> str:
        """`row 17`, from 0 as pandas counts."""
        return f"row {row}"
