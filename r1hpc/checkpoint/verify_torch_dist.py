"""Verifying a torch_dist checkpoint."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from r1hpc.checkpoint import structure
from r1hpc.checkpoint.conversion import SOURCE
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.findings import Findings, Verification
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.checkpoint.placement import find_place
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.recorded_source import Recorded, config_problems, each_problem, open_source
from r1hpc.checkpoint.release_records import ReleaseManifest, read_release_manifest, read_source_record
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
        record, manifest = read_source_record(directory), read_release_manifest(directory)
        shape = model_shape(record.config, directory / SOURCE) if record else None
    except R1hpcError as error:
        findings.problems += each_problem(error)
        return
    recorded = Recorded(record.path, record.identity) if record else None
    source = open_source(given_source, recorded, findings)
    if shape is None and source is not None:
        shape = source.shape
    names = tensors(shape) if shape else ()
    _check_structure(checkpoint, manifest, findings)
    _check_model(checkpoint, shape, names, record is not None, findings)
    if verification.scope.hashes:
        _check_hashes(checkpoint, manifest, verification)
    if source is None or shape is None:
        return
    if set(names) != set(source.names):
        findings.problems.append(f"{directory}: is of another model than {source.directory}")
        return
    if record:
        findings.problems += config_problems(directory / SOURCE, record.config, source)
    if verification.scope.values:
        hashes = record.hashes if record and recorded and recorded.names(source) else {}
        what = f"compared with {source.directory}, bit for bit"
        held = _held(checkpoint, shape, names)
        compare_values(ValueCheck(checkpoint, source, hashes), held, source, what, verification)


def _check_structure(checkpoint: TorchDist, manifest: ReleaseManifest | None, findings: Findings) -> None:
    sizes = {name: file.size_bytes for name, file in manifest.files.items()} if manifest else {}
    findings.problems += structure.form_problems(checkpoint)
    findings.problems += structure.file_problems(checkpoint, sizes)
    findings.problems += structure.coverage_problems(checkpoint)
    if manifest:
        findings.problems += structure.manifest_problems(checkpoint, manifest)
    chunks = sum(len(tensor.chunks) for tensor in checkpoint.tensors.values())
    findings.checked.append(f"structure: {len(checkpoint.tensors):,} tensors, their {chunks:,} chunks, their files")


def _check_model(
    checkpoint: TorchDist, shape: ModelShape | None, names: Sequence[TensorName], converted: bool, findings: Findings
) -> None:
    if shape is None:
        findings.unchecked.append(f"which tensors there must be: {SOURCE} is not there; give --source HF_DIR")
        return
    findings.problems += structure.model_problems(checkpoint, shape, names, converted=converted)
    held = len(_held(checkpoint, shape, names))
    findings.checked.append(f"model: a place for each of {held:,} Hugging Face tensors of its config.json")
    if held < len(names) and not converted:
        findings.unchecked.append(
            f"{len(names) - held:,} tensors of prediction layers: the checkpoint does not hold them"
        )


def _held(checkpoint: TorchDist, shape: ModelShape, names: Sequence[TensorName]) -> list[TensorName]:
    """Those that the checkpoint has a place for: one of a training run may lack the prediction layers."""
    keys = checkpoint.tensors.keys()
    return [name for name in names if find_place(name, shape.num_layers, keys) is not None]


def _check_hashes(checkpoint: TorchDist, manifest: ReleaseManifest | None, verification: Verification) -> None:
    if manifest is None:
        verification.findings.unchecked.append(f"hashes: {MANIFEST} is not there; only convert writes one")
        return
    units = [
        _StoredFile(checkpoint.directory / name, record.size_bytes, record.xxh3, manifest.chunks.get(name, ()))
        for name, record in manifest.files.items()
        if os.path.isfile(checkpoint.directory / name)
    ]
    verification.run("hashes", units, sum(unit.size_bytes for unit in units), _check_file)
    chunks = sum(len(unit.chunks) for unit in units)
    verification.findings.checked.append(f"hashes: {len(units):,} files, {chunks:,} chunks")


def _check_file(unit: _StoredFile, advance: Advance) -> list[str]:
    problems = recheck_file(unit.file, unit.chunks, advance)
    if unit.xxh3 is not None and not problems:
        try:
            found = xxhash.xxh3_64_hexdigest(unit.file.read_bytes())
        except OSError as error:
            return [f"{unit.file}: cannot be read ({error.strerror})"]
        if found != unit.xxh3:
            problems.append(f"{unit.file}: has xxh3 {found}; {unit.xxh3} was written")
    return problems
