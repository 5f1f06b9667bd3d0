"""Files of prompts: rows, slices, and files that are something else."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.data.errors import DataError
from r1hpc.data.files import open_rows, slice_rows
from r1hpc.data.json_lines import JsonLines
from r1hpc.data.rows import RowError

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


def test_rows_are_read_in_the_order_asked_for_with_their_lines(write_lines: Callable[..., Path]) -> None:
    path = write_lines({"n": 0}, "", {"n": 1}, "   \t", {"n": 2}, '{"n": "é"}')
    rows = open_rows(path)
    assert len(rows) == 4
    assert list(rows.read([3, 0, 2, 2])) == [{"n": "é"}, {"n": 0}, {"n": 2}, {"n": 2}]
    assert [rows.place(row) for row in range(4)] == ["line 1", "line 3", "line 5", "line 6"]
    assert rows.digest == xxhash.xxh3_128_hexdigest(path.read_bytes())


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"n": 0}\r\n{"n": 1}\r\n',  # as Windows writes it
        b'\n\n{"n": 0}\n\n{"n": 1}',  # no newline at the end
        b'\xef\xbb\xbf\n{"n": 0}\n{"n": 1}\n\n\n',
    ],
)
def test_marks_line_ends_and_blank_lines_are_no_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    assert list(JsonLines(path).read([0, 1])) == [{"n": 0}, {"n": 1}]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"n": ', "is not JSON: Expecting value at character 7"),
        ("[1, 2]", "is not an object: it is a list; a line is {...}"),
        ("null", "is not an object: it is null; a line is {...}"),
        (b'{"n": "\xff"}', "is not UTF-8: byte 8 of the line"),
        ('{"n": ' + "9" * 5000 + "}", "is JSON that cannot be read: Exceeds the limit"),
        ("[" * 200_000, "is JSON that cannot be read: maximum recursion depth exceeded"),
        ('{"n": 1} {"n": 2}', "is not JSON: Extra data at character 10"),
        ("\0\0\0\0", "is not JSON: Expecting value at character 1"),  # a hole that a crash left
    ],
)
def test_a_broken_row_says_what_is_wrong_with_it(
    write_lines: Callable[..., Path], line: str | bytes, told: str
) -> None:
    before, broken, after = open_rows(write_lines({"n": 0}, line, {"n": 1})).read([0, 1, 2])
    assert isinstance(broken, RowError)
    assert str(broken).startswith(told)
    assert (before, after) == ({"n": 0}, {"n": 1})


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"\x1f\x8b\x08\x00abc", "compressed with gzip"),
        (b"BZh91AY&SY", "compressed with bzip2"),
        (b"\xfd7zXZ\x00", "compressed with xz"),
        (b"PK\x03\x04abc", "is a zip archive"),
        (b'[{"n": 0},\n{"n": 1}]\n', "begins with a JSON list; a prompt file holds one object a line"),
        (b'{"n": 0}\n' + bytes(4096), r"ends within line 2 \(is not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ('{"n": 0}\n'.encode("utf-16"), "is UTF-16"),
        (b'{"n": 0}\n{"n": 1, "text": "and th', r"ends within line 2 \(is not JSON: .*\): the file was cut short"),
    ],
)
def test_a_file_that_holds_no_prompts_says_what_it_is(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        open_rows(path)


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: cannot be read: No such file or directory"):
        open_rows(tmp_path / "gone.jsonl")
    (tmp_path / "math.jsonl").touch()
    with pytest.raises(DataError, match=r"is a directory; name a file in it \(math\.jsonl\)"):
        open_rows(tmp_path)


def test_a_file_that_is_touched_is_the_same_and_one_that_is_changed_is_refused(
    write_lines: Callable[..., Path],
) -> None:
    path = write_lines({"n": 0}, {"n": 1})
    rows = open_rows(path)
    os.utime(path, ns=(1, 1))
    assert list(rows.read([1])) == [{"n": 1}]
    write_lines({"n": 0}, {"n": 7})  # as long as before
    os.utime(path, ns=(2, 2))
    now = xxhash.xxh3_128_hexdigest(path.read_bytes())
    with pytest.raises(DataError, match=f"was changed while it was in use: xxh3 was {rows.digest}, is {now}"):
        list(rows.read([0]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("@[1:3]", [1, 2]),
        ("@[:2]", [0, 1]),
        ("@[3:]", [3, 4]),
        ("@[-2:]", [3, 4]),
        ("@[:-4]", [0]),
        ("@[-4:-1]", [1, 2, 3]),
        ("@[:]", [0, 1, 2, 3, 4]),
        ("@[2:100]", [2, 3, 4]),
        ("@[-100:1]", [0]),
    ],
)
def test_slices(text: str, expected: list[int]) -> None:
    assert list(slice_rows(f"/data/a@b.jsonl{text}", 5)) == expected


@pytest.mark.parametrize("text", ["@[5:]", "@[3:3]", "@[-1:-3]", "@[:0]"])
def test_an_empty_slice_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the slice is empty: the file has rows 0 to 4"):
        slice_rows(f"/data/a.jsonl{text}", 5)


bounds = st.none() | st.integers(-30, 30)


@settings(deadline=None)
@given(first=bounds, last=bounds, num_rows=st.integers(1, 20))
def test_a_slice_means_what_it_means_in_python(first: int | None, last: int | None, num_rows: int) -> None:
    shown = ["" if bound is None else str(bound) for bound in (first, last)]
    prompt_data = f"a.jsonl@[{shown[0]}:{shown[1]}]"
    if expected := list(range(num_rows))[first:last]:
        assert list(slice_rows(prompt_data, num_rows)) == expected
    else:
        with pytest.raises(DataError):
            slice_rows(prompt_data, num_rows)


@pytest.mark.skipif(HAS_PYARROW, reason="pyarrow is installed")
def test_parquet_without_pyarrow_names_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    path.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(DataError, match=r"needs pyarrow, and that is not installed: pip install pyarrow, or write"):
        open_rows(path)


@pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed: no parquet can be written or read")
def test_rows_of_parquet(tmp_path: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    values = [{"prompt": [{"role": "user", "content": f"{n}?"}], "label": str(n)} for n in range(5)]
    path = tmp_path / "prompts.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(values), path)
    rows = open_rows(path)
    assert list(rows.read([4, 0])) == [values[4], values[0]]
    assert (len(rows), rows.place(4)) == (5, "row 4")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="pyarrow cannot read it"):
        open_rows(path)
