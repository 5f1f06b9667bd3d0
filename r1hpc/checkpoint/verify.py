"""Whether a checkpoint is what it must be: structure, hashes, values. Megatron itself would load most of what is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.checkpoint import structure, verify_hf
from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.findings import Findings
from r1hpc.checkpoint.hf_checkpoint import INDEX, MANIFEST, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.checkpoint.placement import find_place
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.release import SOURCE
from r1hpc.checkpoint.torch_dist import METADATA, TorchDist, is_torch_dist, open_torch_dist, resolve
from r1hpc.checkpoint.values import Batch, ValueCheck, batches, sample, size_bytes
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError, CheckpointProblems, ProblemsError, R1hpcError
from r1hpc.plan.model_shape import ModelShape, model_shape


@dataclass(frozen=True)
class Scope:
    """How much is read. The structure always is: it costs no payload."""

    hashes: bool = True
    values: bool = True
    sample: int | None = None
    """Compare the values of so many tensors; null: of all."""


@dataclass(frozen=True)
class _Run:
    """How the reading is done."""

    scope: Scope
    workers: int
    say: Callable[[str], None]

    def units(self, what: str, units: Sequence[Any], size: int, work: Callable[[Any, Advance], list[str]]) -> list[str]:
        """The problems of every unit."""
        found = run_units(units, work, self.workers, Progress(what, size, self.say)).results
        return [problem for problems in found for problem in problems]


@dataclass(frozen=True)
class _StoredFile:
    """A file of a torch_dist checkpoint with the hashes that were noted when it was written."""

    file: Path
    size_bytes: int
    xxh3: str | None
    """Of the whole file; null where its chunks have theirs."""
    chunks: tuple[StoredChunk, ...]

    def __str__(self) -> str:
        return self.file.name


def verify(
    path: Path, *, source: Path | None = None, scope: Scope, workers: int, say: Callable[[str], None]
) -> Findings:
    """Check the checkpoint in `path` against itself, its records, and its source where that is known and there.

    source: the Hugging Face checkpoint it was made from; null: the one that it names. Raises CheckpointError when
    `path` or a given `source` holds no checkpoint at all.
    """
    run = _Run(scope, workers, say)
    if is_torch_dist(path):
        return _verify_torch_dist(resolve(path), source, run)
    if (path / INDEX).exists() or (path / "model.safetensors").exists():
        return _verify_hugging_face(path, source, run)
    raise CheckpointError(
        f"{path}: holds no checkpoint: neither {METADATA} (torch_dist), nor a tracker that names one, nor {INDEX} "
        "(Hugging Face)"
    )


def _verify_torch_dist(directory: Path, given: Path | None, run: _Run) -> Findings:
    findings = Findings()
    try:
        checkpoint = open_torch_dist(directory)
        record, manifest = read_record(directory / SOURCE), read_record(directory / MANIFEST)
    except R1hpcError as error:
        findings.problems += _each(error)
        return findings
    source = _source(given, record, findings)
    shape = _shape(record, source, directory)
    names = tensors(shape) if shape else ()
    _structure(checkpoint, shape, names, bool(record), manifest, findings)
    if run.scope.hashes:
        _hashes(checkpoint, manifest, run, findings)
    if run.scope.values and source is not None:
        if shape == source.shape:
            check = ValueCheck(checkpoint, source, record.get("tensors", {}))
            stored = [name for name in names if find_place(name, source.shape.num_layers, checkpoint.tensors)]
            _values(check, stored, source, run, findings, f"with {source.directory}, bit for bit")
        else:
            findings.problems.append(
                f"{directory}: was converted from a model of another shape than {source.directory}"
            )
    return findings


def _verify_hugging_face(directory: Path, given: Path | None, run: _Run) -> Findings:
    findings = Findings()
    try:
        checkpoint = open_checkpoint(directory)
        manifest = read_record(directory / MANIFEST)
    except R1hpcError as error:
        findings.problems += _each(error)
        return findings
    findings.checked.append(f"structure: {len(checkpoint.names):,} tensors in {len(checkpoint.headers)} files")
    if manifest:
        findings.problems += verify_hf.index_problems(checkpoint)
        files, problems = verify_hf.hashed_files(checkpoint, manifest)
        findings.problems += problems
        if run.scope.hashes:
            total = sum(file.size_bytes for file in files)
            findings.problems += run.units("hashes", files, total, verify_hf.check_hashes)
            findings.checked.append(f"hashes: {sum(len(file.tensors) for file in files):,} tensors")
    else:
        findings.unchecked.append(f"hashes: {MANIFEST} is not there; the cast and the export write one")
    if run.scope.values:
        _hugging_face_values(checkpoint, manifest.get("source", {}), given, run, findings)
    return findings


def _hugging_face_values(
    checkpoint: HfCheckpoint, record: Mapping[str, Any], given: Path | None, run: _Run, findings: Findings
) -> None:
    origin = given or (Path(record["path"]) if record else None)
    if origin is not None and is_torch_dist(origin) and not checkpoint.has_fp8:
        stored = open_torch_dist(origin)
        names = [name for name in checkpoint.names if find_place(name, checkpoint.shape.num_layers, stored.tensors)]
        what = f"with {origin}, bit for bit"
        _values(ValueCheck(stored, checkpoint, {}), names, checkpoint, run, findings, what)
        return
    source = None if origin is not None and is_torch_dist(origin) else _source(given, record, findings)
    if source is None or source.directory.resolve() == checkpoint.directory.resolve():
        _values(verify_hf.FiniteValues(checkpoint), checkpoint.names, checkpoint, run, findings, "to be finite numbers")
    elif source.shape.num_layers != checkpoint.shape.num_layers or set(source.names) != set(checkpoint.names):
        findings.problems.append(f"{checkpoint.directory}: is of another model than {source.directory}")
    else:
        check = verify_hf.SameValues(checkpoint, source)
        _values(check, checkpoint.names, checkpoint, run, findings, f"with {source.directory}")


def _values(
    check: Callable[[Batch, Advance], list[str]],
    names: Sequence[TensorName],
    order: HfCheckpoint,
    run: _Run,
    findings: Findings,
    what: str,
) -> None:
    chosen = list(names) if run.scope.sample is None else sample(names, run.scope.sample)
    units = batches(chosen, order)
    total = sum(map(size_bytes, chosen))
    findings.problems += run.units("values", units, total, check)
    count = f"{len(chosen):,}" if len(chosen) == len(names) else f"a sample of {len(chosen):,} of {len(names):,}"
    findings.checked.append(f"values: {count} tensors {what}")


def _structure(
    checkpoint: TorchDist,
    shape: ModelShape | None,
    names: Sequence[TensorName],
    converted: bool,
    manifest: Mapping[str, Any],
    findings: Findings,
) -> None:
    findings.problems += structure.form_problems(checkpoint)
    findings.problems += structure.file_problems(checkpoint, manifest.get("files", {}))
    findings.problems += structure.coverage_problems(checkpoint)
    chunks = sum(len(tensor.chunks) for tensor in checkpoint.tensors.values())
    findings.checked.append(f"structure: {len(checkpoint.tensors):,} tensors in {chunks:,} chunks, each covered once")
    if manifest:
        findings.problems += structure.manifest_problems(checkpoint, manifest["chunks"])
    if shape is None:
        findings.unchecked.append(f"which tensors there must be: {SOURCE} is not there; give --source HF_DIR")
        return
    findings.problems += structure.model_problems(checkpoint, shape, names, converted=converted)
    findings.checked.append(f"model: the {len(names):,} Hugging Face tensors of its config.json, each in one place")


def _hashes(checkpoint: TorchDist, manifest: Mapping[str, Any], run: _Run, findings: Findings) -> None:
    if not manifest:
        findings.unchecked.append(f"hashes: {MANIFEST} is not there; only convert writes one")
        return
    of_file: dict[str, list[StoredChunk]] = {}
    for key, rows in manifest["chunks"].items():
        for offsets, sizes, file, offset, length, xxh3 in rows:
            chunk = Chunk(tuple(offsets), tuple(sizes))
            of_file.setdefault(file, []).append(StoredChunk(key, chunk, offset, length, xxh3))
    units = [
        _StoredFile(
            checkpoint.directory / file,
            record["size"],
            record["xxh3"],
            tuple(sorted(of_file.get(file, []), key=lambda chunk: chunk.offset)),
        )
        for file, record in manifest["files"].items()
        if (checkpoint.directory / file).is_file()
    ]
    findings.problems += run.units("hashes", units, sum(unit.size_bytes for unit in units), _check_file)
    count = sum(len(unit.chunks) for unit in units)
    findings.checked.append(f"hashes: {len(units)} files, {count:,} chunks")


def _check_file(unit: _StoredFile, advance: Advance) -> list[str]:
    problems = recheck_file(unit.file, unit.chunks, advance)
    if unit.xxh3 is not None:
        with open(unit.file, "rb") as stream:
            found = xxhash.xxh3_64(stream.read()).hexdigest()
        if found != unit.xxh3:
            problems.append(f"{unit.file}: has xxh3 {found}; {unit.xxh3} was written")
    return problems


def _source(given: Path | None, record: Mapping[str, Any], findings: Findings) -> HfCheckpoint | None:
    """The Hugging Face checkpoint to compare with; null, with the reason noted, where there is none."""
    if given is None and not record:
        findings.unchecked.append("values against their source: none is on record; give --source HF_DIR")
        return None
    directory = given or Path(record["path"])
    if not directory.is_dir():
        if given is not None:
            raise CheckpointError(f"{given}: is no directory; --source names a Hugging Face checkpoint")
        findings.unchecked.append(f"values: their source {directory} is not there; give --source HF_DIR")
        return None
    try:
        source = open_checkpoint(directory)
    except CheckpointProblems as error:
        findings.problems += [f"source: {problem}" for problem in error.problems]
        return None
    if record and source.identity != record["identity"]:
        findings.unchecked.append(
            f"that {directory} is the source of old: its files or their times changed since; values say whether it matters"
        )
    return source


def _shape(record: Mapping[str, Any], source: HfCheckpoint | None, directory: Path) -> ModelShape | None:
    if record:
        return model_shape(record["config"], directory / SOURCE)
    return source.shape if source else None


def _each(error: R1hpcError) -> list[str]:
    return list(error.problems) if isinstance(error, ProblemsError) else [str(error)]
