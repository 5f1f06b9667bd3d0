"""Which rows `path` or `path@[a:b]` means, whatever the format of the file."""

from __future__ import annotations

import os
from pathlib import Path

from r1hpc.config.base import split_slice
from r1hpc.data.errors import DataError
from r1hpc.data.json_lines import JsonLines
from r1hpc.data.parquet import ParquetRows
from r1hpc.data.rows import Rows, open_file

_PARQUET = b"PAR1"
_NOT_PROMPTS = {
    b"\x1f\x8b": "is compressed with gzip: unpack it (gunzip)",
    b"BZh": "is compressed with bzip2: unpack it (bunzip2)",
    b"\xfd7zXZ": "is compressed with xz: unpack it (unxz)",
    b"PK\x03\x04": "is a zip archive: unpack it (unzip)",
    b"\x28\xb5\x2f\xfd": "is compressed with zstandard: unpack it (unzstd)",
    b"version https://git-lfs": "is a Git LFS pointer, not the file that it stands for: fetch that (git lfs pull)",
    b"\xff\xfe": "is UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"\xfe\xff": "is UTF-16: write it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
    b"[": "begins with a JSON list; a prompt file holds one object a line (jq -c '.[]' FILE > FILE.jsonl)",
}
"""First bytes of files that people give by mistake, and what to do."""


def open_rows(path: Path) -> Rows:
    """The rows of `path`: parquet by its first bytes, else one JSON object a line. Raises DataError."""
    # Not Path.is_dir, which raises where a directory on the way is closed.
    if os.path.isdir(path):
        found = sorted(name for name in os.listdir(path) if name.endswith((".jsonl", ".parquet")))
        raise DataError(f"{path}: is a directory; name a file in it ({', '.join(found[:5]) or 'it has no jsonl'})")
    with open_file(path) as stream:
        begin = stream.read(32)
    for first_bytes, what in _NOT_PROMPTS.items():
        if begin.startswith(first_bytes):
            raise DataError(f"{path}: {what}")
    rows: Rows = ParquetRows(path) if begin.startswith(_PARQUET) else JsonLines(path)
    if not len(rows):
        raise DataError(f"{path}: is empty; a prompt file holds one JSON object a line, or is parquet")
    return rows


def slice_rows(prompt_data: str, num_rows: int) -> range:
    """Rows that `path@[a:b]` means of a file with `num_rows`; negative bounds count from the end, as in Python.

    Raises DataError when there are none.
    """
    _, text = split_slice(prompt_data)
    first, _, last = text.removeprefix("@[").removesuffix("]").partition(":")
    rows = range(num_rows)[slice(int(first) if first else None, int(last) if last else None)]
    if not rows:
        raise DataError(f"{prompt_data}: the slice is empty: the file has rows 0 to {num_rows - 1}")
    return rows
