"""Verifying a torch_dist checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.checkpoint import structure
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.findings import Findings, Verification
from r1hpc.checkpoint.hf_checkpoint import MANIFEST, HfCheckpoint
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.recorded_source import each_problem, open_source
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.release import SOURCE
from r1hpc.checkpoint.torch_dist import TorchDist, open_torch_dist
from r1hpc.checkpoint.values import ValueCheck, compare_values
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import R1hpcError
from r1hpc.plan.model_shape import ModelShape, model_shape


@dataclass(frozen=True)
class _StoredFile:
    """A file of the checkpoint with the hashes that were noted when it was written."""

    file: Path
    size_bytes: int
    xxh3: str | None
    """Of the whole file; null where its chunks have theirs."""
    chunks: tuple[StoredChunk, ...]

    def __str__(self) -> str:
        return self.file.name


def verify_torch_dist(directory: Path, given_source: Path | None, verification: Verification) -> None:
    """Check the checkpoint whose `.metadata` lies in `directory`; what is wrong goes to the findings."""
    findings = verification.findings
    try:
        checkpoint = open_torch_dist(directory)
        record, manifest = read_record(directory / SOURCE), read_record(directory / MANIFEST)
    except R1hpcError as error:
        findings.problems += each_problem(error)
        return
    source = open_source(given_source, record, findings)
    shape = _shape(record, source, directory)
    names = tensors(shape) if shape else ()
    _check_structure(checkpoint, manifest, findings)
    _check_model(checkpoint, shape, names, bool(record), findings)
    if verification.scope.hashes:
        _check_hashes(checkpoint, manifest, verification)
    if verification.scope.values and source is not None:
        if set(names) != set(source.names):
            findings.problems.append(f"{directory}: is of another model than {source.directory}")
            return
        check = ValueCheck(checkpoint, source, record.get("tensors", {}))
        what = f"compared with {source.directory}, bit for bit"
        compare_values(check, check.stored(names), source, what, verification)


def _shape(record: Mapping[str, Any], source: HfCheckpoint | None, directory: Path) -> ModelShape | None:
    if record:
        return model_shape(record["config"], directory / SOURCE)
    return source.shape if source else None


def _check_structure(checkpoint: TorchDist, manifest: Mapping[str, Any], findings: Findings) -> None:
    findings.problems += structure.form_problems(checkpoint)
    findings.problems += structure.file_problems(checkpoint, manifest.get("files", {}))
    findings.problems += structure.coverage_problems(checkpoint)
    findings.problems += structure.manifest_problems(checkpoint, manifest.get("chunks", {}))
    chunks = sum(len(tensor.chunks) for tensor in checkpoint.tensors.values())
    findings.checked.append(f"structure: {len(checkpoint.tensors):,} tensors, their {chunks:,} chunks, their files")


def _check_model(
    checkpoint: TorchDist, shape: ModelShape | None, names: Sequence[TensorName], converted: bool, findings: Findings
) -> None:
    if shape is None:
        findings.unchecked.append(f"which tensors there must be: {SOURCE} is not there; give --source HF_DIR")
        return
    findings.problems += structure.model_problems(checkpoint, shape, names, converted=converted)
    findings.checked.append(f"model: a place for each of the {len(names):,} Hugging Face tensors of its config.json")


def _check_hashes(checkpoint: TorchDist, manifest: Mapping[str, Any], verification: Verification) -> None:
    if not manifest:
        verification.findings.unchecked.append(f"hashes: {MANIFEST} is not there; only convert writes one")
        return
    of_file: dict[str, list[StoredChunk]] = {}
    for key, rows in manifest["chunks"].items():
        for offsets, sizes, file, offset, length, xxh3 in rows:
            chunk = StoredChunk(key, Chunk(tuple(offsets), tuple(sizes)), offset, length, xxh3)
            of_file.setdefault(file, []).append(chunk)
    units = [
        _StoredFile(checkpoint.directory / file, record["size"], record["xxh3"], _in_order(of_file.get(file, [])))
        for file, record in manifest["files"].items()
        if (checkpoint.directory / file).is_file()
    ]
    verification.run("hashes", units, sum(unit.size_bytes for unit in units), _check_file)
    chunks = sum(len(unit.chunks) for unit in units)
    verification.findings.checked.append(f"hashes: {len(units):,} files, {chunks:,} chunks")


def _in_order(chunks: Sequence[StoredChunk]) -> tuple[StoredChunk, ...]:
    return tuple(sorted(chunks, key=lambda chunk: chunk.offset))


def _check_file(unit: _StoredFile, advance: Advance) -> list[str]:
    problems = recheck_file(unit.file, unit.chunks, advance)
    if unit.xxh3 is not None:
        found = xxhash.xxh3_64_hexdigest(unit.file.read_bytes())
        if found != unit.xxh3:
            problems.append(f"{unit.file}: has xxh3 {found}; {unit.xxh3} was written")
    return problems
