"""What a checkpoint holds, from its metadata alone: torch_dist or Hugging Face."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.fold import fold, template
from r1hpc.checkpoint.hf_checkpoint import SCALE_SUFFIX, read_index, read_manifest
from r1hpc.checkpoint.kind import Kind, kind_of
from r1hpc.checkpoint.release_records import read_source_record
from r1hpc.checkpoint.safetensors_file import read_header
from r1hpc.checkpoint.torch_dist import Extent, StoredTensor, TorchDist, open_torch_dist
from r1hpc.checkpoint.training_state import is_training_state
from r1hpc.plan.units import show_bytes, show_count

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn"}


@dataclass(frozen=True)
class Piece:
    """A range of bytes of a tensor."""

    box: str
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Row:
    """One tensor."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    pieces: tuple[Piece, ...]
    alias_of: str | None = None
    """The key that names the same bytes."""
    counts: bool = True
    """Whether its elements are parameters: no scale, no optimizer state, no alias."""


@dataclass(frozen=True)
class Contents:
    """A checkpoint as a table."""

    kind: str
    directory: Path
    source: str | None
    rows: tuple[Row, ...]
    num_objects: int
    """Entries that are no tensors."""
    num_files: int

    @property
    def num_parameters(self) -> int:
        """Elements of the model's weights, copies of a Hugging Face checkpoint included."""
        return sum(math.prod(row.shape) for row in self.rows if row.counts)

    @property
    def size_bytes(self) -> int:
        """Payload of every tensor, each range once."""
        return sum(row.size_bytes for row in self.rows if row.alias_of is None)


def contents(path: Path) -> Contents:
    """The table of the checkpoint in `path`. Raises CheckpointError when there is none that can be read."""
    match kind_of(path):
        case Kind.TORCH_DIST:
            return _torch_dist(open_torch_dist(path))
        case Kind.HUGGING_FACE:
            return _hugging_face(path)


def select(table: Contents, pattern: str) -> Contents:
    """The rows whose key matches: a word in it, or a pattern with * and ? for all of it."""
    wild = any(character in pattern for character in "*?[")
    rows = [row for row in table.rows if (fnmatch.fnmatchcase(row.key, pattern) if wild else pattern in row.key)]
    files = {piece.file for row in rows for piece in row.pieces}
    return replace(table, rows=tuple(rows), num_objects=0, num_files=len(files))


def render(table: Contents, *, unfolded: bool = False, pieces: bool = False) -> Iterator[str]:
    """The table, line by line; equal tensors of several layers or experts on one line unless unfolded."""
    yield f"{table.directory}: {table.kind}"
    if table.source:
        yield f"source: {table.source}"
    yield ""
    rows = [(row.key, row) for row in table.rows] if unfolded or pieces else _folded(table.rows)
    cells = [("key", "shape", "dtype", "chunks", "bytes")]
    cells += [(name, *_cells(row)) for name, row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in range(4)]
    for number, (key, shape, dtype, chunks, size) in enumerate(cells):
        yield f"{key:{widths[0]}}  {shape:{widths[1]}}  {dtype:{widths[2]}}  {chunks:>{widths[3]}}  {size}".rstrip()
        if pieces and number:
            for piece in rows[number - 1][1].pieces:
                yield f"    {piece.box}  {piece.file} from byte {piece.offset:,}, {piece.length:,} bytes"
    yield ""
    yield _totals(table)


def to_json(table: Contents) -> dict[str, Any]:
    """Everything of the table."""
    return {
        "kind": table.kind,
        "directory": str(table.directory),
        "source": table.source,
        "parameters": table.num_parameters,
        "bytes": table.size_bytes,
        "files": table.num_files,
        "objects": table.num_objects,
        "tensors": {
            row.key: {
                "shape": list(row.shape),
                "dtype": row.dtype,
                "bytes": row.size_bytes,
                "alias_of": row.alias_of,
                "chunks": [[piece.box, piece.file, piece.offset, piece.length] for piece in row.pieces],
            }
            for row in table.rows
        },
    }


def _torch_dist(checkpoint: TorchDist) -> Contents:
    source = read_source_record(checkpoint.directory)
    owners: dict[tuple[Extent, ...], str] = {}
    rows = []
    for key, tensor in checkpoint.tensors.items():
        extents = tuple(chunk.extent for chunk in tensor.chunks)
        owner = owners.setdefault(extents, key) if extents else key
        rows.append(_stored_row(tensor, owner if owner != key else None))
    rows.sort(key=lambda row: _model_order(row.key))
    files = {extent.file for extent in checkpoint.extents()}
    named = f"{source.path} (identity {source.identity[:12]})" if source else None
    return Contents("torch_dist", checkpoint.directory, named, tuple(rows), len(checkpoint.objects), len(files))


def _stored_row(tensor: StoredTensor, alias_of: str | None) -> Row:
    pieces = (
        Piece(str(chunk.box), chunk.extent.file, chunk.extent.offset, chunk.extent.length) for chunk in tensor.chunks
    )
    dtype = str(tensor.dtype).removeprefix("torch.")
    size = math.prod(tensor.shape) * tensor.dtype.itemsize
    counts = alias_of is None and not is_training_state(tensor.key)
    return Row(tensor.key, tensor.shape, dtype, size, tuple(pieces), alias_of, counts)


def _hugging_face(directory: Path) -> Contents:
    files = sorted(set(read_index(directory).values()))
    entries = [entry for file in files for entry in read_header(directory / file).tensors]
    rows = [
        Row(
            entry.name,
            entry.shape,
            _FLOATS.get(entry.dtype, entry.dtype),
            entry.size_bytes,
            (Piece("[all]", entry.file.name, entry.begin, entry.size_bytes),),
            counts=not entry.name.endswith(SCALE_SUFFIX),
        )
        for entry in sorted(entries, key=lambda entry: _model_order(entry.name))
    ]
    source = read_manifest(directory).get("source", {}).get("path")
    return Contents(Kind.HUGGING_FACE.value, directory, source, tuple(rows), 0, len(files))


def _model_order(key: str) -> tuple[Any, ...]:
    """Embedding, layers by number, what comes after them, prediction layers; then the optimizer's."""
    form, numbers = template(key)
    parts = ("embed_tokens", "embedding.", "layers.{}", "final_layernorm", "model.norm", "output_layer", "lm_head")
    rank = next((number for number, part in enumerate(parts) if part in form), len(parts))
    layer = numbers[:1] if "layers.{}" in form else ()
    return (
        is_training_state(key),
        key.startswith("mtp."),
        rank if "layers.{}" not in form else 2,
        layer,
        form,
        numbers,
    )


def _folded(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """One row for each run of equal ones, in the order of the first of each."""
    alike: dict[tuple[Any, ...], list[tuple[tuple[int, ...], Row]]] = {}
    for row in rows:
        form, numbers = template(row.key)
        alias = row.alias_of and template(row.alias_of)[0]
        like = (form, row.shape, row.dtype, len(row.pieces), alias)
        alike.setdefault(like, []).append((numbers, row))
    lines = []
    for (form, *_), members in alike.items():
        for ranges in fold(numbers for numbers, _ in members):
            lines.append((form.format(*ranges), members[0][1]))
    return lines


def _cells(row: Row) -> tuple[str, str, str, str]:
    size = show_bytes(row.size_bytes)
    if row.alias_of:
        size = "= " + _from_first_difference(row.alias_of, row.key)
    return str(list(row.shape)), row.dtype, str(len(row.pieces)), size


def _from_first_difference(key: str, other: str) -> str:
    """The parts of a dotted key from the first that is not the other's; all of one that the other begins with."""
    parts, others = key.split("."), other.split(".")
    different = [number for number, pair in enumerate(zip(parts, others, strict=False)) if pair[0] != pair[1]]
    return ".".join(parts[different[0] :]) if different else key


def _totals(table: Contents) -> str:
    dtypes = Counter[str]()
    for row in table.rows:
        if row.alias_of is None:
            dtypes[row.dtype] += row.size_bytes
    shares = ", ".join(f"{dtype} {show_bytes(size)}" for dtype, size in dtypes.most_common())
    objects = f", {table.num_objects:,} objects that are no tensors" if table.num_objects else ""
    count = table.num_parameters
    return (
        f"{_number(len(table.rows), 'tensor')}, {show_count(count)} parameters ({count:,}), "
        f"{show_bytes(table.size_bytes)} ({shares}) in {_number(table.num_files, 'file')}{objects}"
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
