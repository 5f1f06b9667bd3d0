"""Verifying a Hugging Face checkpoint: its headers, the hashes that its writer left, its values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.findings import Verification
from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, MANIFEST, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.hf_values import FiniteValues, SameValues
from r1hpc.checkpoint.kind import Kind, kind_of
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.recorded_source import each_problem, open_source
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.safetensors_file import TensorEntry
from r1hpc.checkpoint.torch_dist import open_torch_dist
from r1hpc.checkpoint.values import ValueCheck, compare_values
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import R1hpcError


@dataclass(frozen=True)
class _HashedFile:
    """A safetensors file, and the hash that each of its tensors had when it was written."""

    file: Path
    tensors: tuple[tuple[TensorEntry, str], ...]

    @property
    def size_bytes(self) -> int:
        """Bytes to read."""
        return sum(entry.size_bytes for entry, _ in self.tensors)

    def __str__(self) -> str:
        return self.file.name


def verify_hugging_face(directory: Path, given_source: Path | None, verification: Verification) -> None:
    """Check the checkpoint in `directory`; what is wrong goes to the findings."""
    findings = verification.findings
    try:
        checkpoint = open_checkpoint(directory)
        manifest = read_record(directory / MANIFEST)
    except R1hpcError as error:
        findings.problems += each_problem(error)
        return
    findings.checked.append(f"structure: {len(checkpoint.names):,} tensors in {len(checkpoint.headers)} files")
    if manifest:
        findings.problems += _index_problems(checkpoint)
        _check_manifest(checkpoint, manifest, verification)
    else:
        findings.unchecked.append(f"hashes: {MANIFEST} is not there; the cast and the export write one")
    if verification.scope.values:
        _check_values(checkpoint, manifest.get("source", {}), given_source, verification)


def _check_manifest(checkpoint: HfCheckpoint, manifest: Mapping[str, Any], verification: Verification) -> None:
    files, problems = _hashed_files(checkpoint, manifest)
    verification.findings.problems += problems
    if verification.scope.hashes:
        verification.run("hashes", files, sum(file.size_bytes for file in files), _check_hashes)
        verification.findings.checked.append(f"hashes: {sum(len(file.tensors) for file in files):,} tensors")


def _check_values(
    checkpoint: HfCheckpoint, record: Mapping[str, Any], given_source: Path | None, verification: Verification
) -> None:
    origin = given_source or (Path(record["path"]) if record else None)
    names, findings = checkpoint.names, verification.findings
    if origin is not None and origin.is_dir() and kind_of(origin) is Kind.TORCH_DIST:
        if checkpoint.has_fp8:
            findings.unchecked.append(f"values against {origin}: quantizing has rounded them")
        else:
            check = ValueCheck(open_torch_dist(origin), checkpoint, {})
            compare_values(check, check.stored(names), checkpoint, f"compared with {origin}, bit for bit", verification)
        return
    source = open_source(given_source, record, findings)
    if source is None:
        compare_values(FiniteValues(checkpoint), names, checkpoint, "read, for any that is not finite", verification)
    elif set(source.names) != set(names):
        findings.problems.append(f"{checkpoint.directory}: is of another model than {source.directory}")
    else:
        same = SameValues(checkpoint, source)
        compare_values(same, names, checkpoint, f"compared with {source.directory}", verification)


def _index_problems(checkpoint: HfCheckpoint) -> Iterator[str]:
    """A total size that is not that of the tensors; a quantization that config.json and the files disagree on."""
    file = checkpoint.directory / INDEX
    if file.exists():
        total = json.loads(file.read_text(encoding="utf-8")).get("metadata", {}).get("total_size")
        actual = sum(entry.size_bytes for entry in checkpoint.entries.values())
        if total != actual:
            yield f"{file}: total_size is {total}; the tensors have {actual:,} bytes"
    if ("quantization_config" in checkpoint.config) != checkpoint.has_fp8:
        says = "names" if "quantization_config" in checkpoint.config else "does not name"
        stored = "fp8" if checkpoint.has_fp8 else "bf16"
        yield f"{checkpoint.directory / CONFIG}: {says} a quantization_config, the weights are {stored}"


def _hashed_files(checkpoint: HfCheckpoint, manifest: Mapping[str, Any]) -> tuple[list[_HashedFile], list[str]]:
    """The files with the hashes of their manifest; and what manifest and files do not agree on."""
    recorded: Mapping[str, Any] = manifest["files"]
    problems: list[str] = []
    files = []
    for header in checkpoint.headers:
        record = recorded.get(header.file.name)
        if record is None:
            problems.append(f"{header.file}: is not in the manifest")
            continue
        if header.size_bytes != record["size"]:
            problems.append(f"{header.file}: has {header.size_bytes:,} bytes, the manifest says {record['size']:,}")
        hashes: Mapping[str, str] = record["tensors"]
        for name in sorted({entry.name for entry in header.tensors} ^ hashes.keys()):
            where = "not in the manifest" if name not in hashes else "in the manifest, but not in the file"
            problems.append(f"{header.file}: {name} is {where}")
        pairs = tuple((entry, hashes[entry.name]) for entry in header.tensors if entry.name in hashes)
        files.append(_HashedFile(header.file, pairs))
    missing = recorded.keys() - {header.file.name for header in checkpoint.headers}
    problems += [f"{checkpoint.directory / name}: is in the manifest, but no tensor lies in it" for name in missing]
    return files, problems


def _check_hashes(file: _HashedFile, advance: Advance) -> list[str]:
    """The tensors of one file whose bytes are not those that were written."""
    stored = [
        StoredChunk(entry.name, Chunk((0,) * len(entry.shape), entry.shape), entry.begin, entry.size_bytes, xxh3)
        for entry, xxh3 in file.tensors
    ]
    return recheck_file(file.file, stored, advance)
