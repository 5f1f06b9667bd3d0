"""Verifying a Hugging Face checkpoint: its headers, the hashes that its writer left, its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.findings import Verification
from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, MANIFEST, HfCheckpoint, open_checkpoint, read_manifest
from r1hpc.checkpoint.hf_values import FiniteValues, HfWeights, SameValues
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.recorded_source import Recorded, config_problems, each_problem, open_origin
from r1hpc.checkpoint.records import read_object
from r1hpc.checkpoint.safetensors_file import TensorEntry
from r1hpc.checkpoint.stored_weights import StoredWeights
from r1hpc.checkpoint.torch_dist import TorchDist
from r1hpc.checkpoint.values import compare_values
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
        manifest = read_manifest(directory)
    except R1hpcError as error:
        findings.problems += each_problem(error)
        return
    origin = None
    if verification.scope.values:
        source = manifest.get("source")
        recorded = Recorded(Path(source["path"]), source["identity"]) if source else None
        origin = open_origin(given_source, recorded, findings)
    findings.checked.append(f"structure: {len(checkpoint.names):,} tensors in {len(checkpoint.headers)} files")
    findings.problems += _quantization_problems(checkpoint)
    if manifest:
        findings.problems += _total_problems(checkpoint)
        _check_manifest(checkpoint, manifest, verification)
    else:
        findings.unchecked.append(f"hashes: {MANIFEST} is not there, or not of ours; the cast and the export write one")
    if verification.scope.values:
        _check_values(checkpoint, origin, bool(manifest), verification)


def _check_manifest(checkpoint: HfCheckpoint, manifest: Mapping[str, Any], verification: Verification) -> None:
    files, problems = _hashed_files(checkpoint, manifest)
    verification.findings.problems += problems
    if verification.scope.hashes:
        verification.run("hashes", files, sum(file.size_bytes for file in files), _check_hashes)
        verification.findings.checked.append(f"hashes: {sum(len(file.tensors) for file in files):,} tensors")


def _check_values(
    checkpoint: HfCheckpoint, origin: HfCheckpoint | TorchDist | None, exported: bool, verification: Verification
) -> None:
    names = checkpoint.names
    if isinstance(origin, TorchDist):
        _compare_with_stored(checkpoint, origin, exported, verification)
    elif origin is None:
        _check_finite(checkpoint, names, verification)
    elif set(origin.names) != set(names):
        verification.findings.problems.append(f"{checkpoint.directory}: is of another model than {origin.directory}")
    else:
        verification.findings.problems += config_problems(checkpoint.directory / CONFIG, checkpoint.config, origin)
        same = SameValues(checkpoint, HfWeights(origin), exported=exported)
        compare_values(same, names, checkpoint, f"compared with {origin.directory}", verification)


def _compare_with_stored(
    checkpoint: HfCheckpoint, origin: TorchDist, exported: bool, verification: Verification
) -> None:
    weights = StoredWeights(origin, checkpoint.shape.num_layers)
    held = [name for name in checkpoint.names if weights.place(name) is not None]
    what = f"compared with {origin.directory}, bit for bit"
    same = SameValues(checkpoint, weights, exported=exported)
    compare_values(same, held, checkpoint, what, verification)
    if others := [name for name in checkpoint.names if weights.place(name) is None]:
        verification.findings.unchecked.append(
            f"values of {len(others):,} tensors against a source: {origin.directory} does not hold them"
        )
        _check_finite(checkpoint, others, verification)


def _check_finite(checkpoint: HfCheckpoint, names: Sequence[TensorName], verification: Verification) -> None:
    what = "read, for any that is not finite"
    compare_values(FiniteValues(checkpoint), names, checkpoint, what, verification)


def _total_problems(checkpoint: HfCheckpoint) -> Iterator[str]:
    """A total size that is not that of the tensors. Only what we wrote is known to have the right one."""
    index = read_object(checkpoint.directory / INDEX) or {}
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    actual = sum(entry.size_bytes for entry in checkpoint.entries.values())
    if index and total != actual:
        yield f"{checkpoint.directory / INDEX}: total_size is {total}; the tensors have {actual:,} bytes"


def _quantization_problems(checkpoint: HfCheckpoint) -> Iterator[str]:
    """A quantization that config.json and the weights disagree on: loaders believe config.json."""
    named = checkpoint.config.get("quantization_config") is not None
    if named != checkpoint.has_fp8:
        says = "names a quantization_config" if named else "names no quantization_config"
        stored = "fp8" if checkpoint.has_fp8 else "bf16"
        yield f"{checkpoint.directory / CONFIG}: {says}, the weights are {stored}"


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
    for name in sorted(recorded.keys() - {header.file.name for header in checkpoint.headers}):
        problems.append(f"{checkpoint.directory / name}: is in the manifest, but no tensor lies in it")
    return files, problems


def _check_hashes(file: _HashedFile, advance: Advance) -> list[str]:
    """The tensors of one file whose bytes are not those that were written."""
    stored = [
        StoredChunk(entry.name, Chunk((0,) * len(entry.shape), entry.shape), entry.begin, entry.size_bytes, xxh3)
        for entry, xxh3 in file.tensors
    ]
    return recheck_file(file.file, stored, advance)
