"""A Hugging Face checkpoint directory: what is in it, checked against its index and against the names of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.checkpoint.names import IGNORED_HF_SUFFIXES, TensorName, tensors
from r1hpc.checkpoint.records import read_object
from r1hpc.checkpoint.safetensors_file import Header, TensorEntry, read_header
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.plan.model_shape import ModelShape, read_model_shape

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MANIFEST = "manifest.json"
"""What the cast writes beside its files: the hash of every tensor."""
SCALE_SUFFIX = "_scale_inv"
FP8 = "F8_E4M3"
_BLOCK = (128, 128)
_MAX_PROBLEMS = 20


@dataclass(frozen=True)
class HfCheckpoint:
    """A checkpoint whose every tensor has its place. Made from headers alone: no payload is read."""

    directory: Path
    config: Mapping[str, Any]
    shape: ModelShape
    headers: tuple[Header, ...]
    """Of every file, in the order of their names."""
    names: tuple[TensorName, ...]
    """What it holds, in the order of the model."""
    entries: Mapping[str, TensorEntry]
    """By tensor name, scales included."""
    identity: str
    """Digest of configuration, headers, times and a sample of each file: another source has another one."""

    @property
    def has_fp8(self) -> bool:
        """Whether any weight is stored in fp8."""
        return any(entry.dtype == FP8 for entry in self.entries.values())

    def scale_of(self, name: str) -> TensorEntry | None:
        """The scales of a tensor in fp8; null for one that is not."""
        return self.entries[name + SCALE_SUFFIX] if self.entries[name].dtype == FP8 else None

    def source_bytes(self, name: str) -> int:
        """Bytes read for one tensor, its scales included."""
        scale = self.scale_of(name)
        return self.entries[name].size_bytes + (scale.size_bytes if scale else 0)


def open_checkpoint(directory: Path) -> HfCheckpoint:
    """Read and check every header of a Hugging Face checkpoint of a DeepSeek-V3 model.

    Raises CheckpointProblems with all that is wrong: a missing or cut file, a tensor that the index and the files do
    not agree on, one that the model does not have or lacks, a wrong shape or dtype, a missing scale.
    """
    shape = read_model_shape(directory)
    raw_config = (directory / CONFIG).read_bytes()
    _check_quantization(shape, json.loads(raw_config), directory)
    weight_map = read_index(directory)
    headers, problems = _headers(directory, sorted(set(weight_map.values())))
    entries = {entry.name: entry for header in headers for entry in header.tensors}
    if not problems:
        problems = _index_problems(weight_map, headers)
    names = tensors(shape)
    if not problems:
        problems = _model_problems(names, entries, directory)
    if problems:
        rest = len(problems) - _MAX_PROBLEMS
        raise CheckpointProblems(problems[:_MAX_PROBLEMS] + ([f"and {rest} more"] if rest > 0 else []))
    identity = _identity(raw_config, headers)
    return HfCheckpoint(directory, json.loads(raw_config), shape, tuple(headers), names, entries, identity)


def read_index(directory: Path) -> dict[str, str]:
    """Tensor name to file name: the index, or the single model.safetensors of a small model."""
    file = directory / INDEX
    single = directory / "model.safetensors"
    try:
        weight_map = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(value) for name, value in weight_map.items()}
    except FileNotFoundError:
        if single.exists():
            return {entry.name: single.name for entry in read_header(single).tensors}
        raise CheckpointError(
            f"{file}: is not there; a Hugging Face checkpoint of several files has an index"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is no index of safetensors files ({error!r}); fetch it again") from error


def read_manifest(directory: Path) -> Mapping[str, Any]:
    """What a cast or an export of ours left beside its files; {} where there is none, or one of somebody else's.

    Raises CheckpointError when it cannot be read, or is ours and damaged.
    """
    file = directory / MANIFEST
    manifest = read_object(file) or {}
    if manifest.get("format") != 1 or not {"files", "source"} <= manifest.keys():
        return {}
    try:
        source, files = manifest["source"], manifest["files"].values()
        words = [source["path"], source["identity"], *(xxh3 for one in files for xxh3 in one["tensors"].values())]
        whole = all(isinstance(word, str) for word in words) and all(isinstance(one["size"], int) for one in files)
    except (KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file}: is no manifest that the cast or the export wrote; it is damaged")
    return manifest


def _check_quantization(shape: ModelShape, config: Mapping[str, Any], directory: Path) -> None:
    if shape.fp8_block is not None and shape.fp8_block != _BLOCK:
        raise CheckpointError(
            f"{directory / CONFIG}: quantization_config.weight_block_size is {list(shape.fp8_block)}; "
            f"supported: {list(_BLOCK)}"
        )
    fmt = (config.get("quantization_config") or {}).get("fmt", "e4m3")
    if fmt != "e4m3":
        raise CheckpointError(f"{directory / CONFIG}: quantization_config.fmt is {fmt!r}; supported: 'e4m3'")


def _headers(directory: Path, files: list[str]) -> tuple[list[Header], list[str]]:
    headers, problems = [], []
    for name in files:
        try:
            headers.append(read_header(directory / name))
        except CheckpointError as error:
            problems.append(str(error))
    return headers, problems


def _index_problems(weight_map: Mapping[str, str], headers: list[Header]) -> list[str]:
    problems, seen = [], dict[str, Path]()
    for header in headers:
        for entry in header.tensors:
            if entry.name in seen:
                problems.append(f"{entry.file}: {entry.name} is also in {seen[entry.name].name}")
            seen[entry.name] = entry.file
            if entry.name not in weight_map:
                problems.append(f"{entry.file}: {entry.name} is not in {INDEX}")
    problems += [
        f"{headers[0].file.parent / file}: has no {name}, which {INDEX} places there"
        for name, file in weight_map.items()
        if name not in seen or seen[name].name != file
    ]
    return problems


def _model_problems(names: tuple[TensorName, ...], entries: Mapping[str, TensorEntry], directory: Path) -> list[str]:
    problems: list[str] = []
    used: set[str] = set()
    for name in names:
        entry = entries.get(name.hf)
        if entry is None:
            problems.append(f"{directory}: {name.hf} {list(name.shape)} is missing; config.json asks for it")
            continue
        used.add(name.hf)
        if entry.shape != name.shape:
            problems.append(
                f"{entry.file}: {name.hf} has shape {list(entry.shape)}; config.json asks for {list(name.shape)}"
            )
        problems += _dtype_problems(name, entry)
        if entry.dtype == FP8:
            used.add(name.hf + SCALE_SUFFIX)
            problems += _scale_problems(entry, entries.get(name.hf + SCALE_SUFFIX))
    for left in sorted(entries.keys() - used):
        if not left.endswith(IGNORED_HF_SUFFIXES):
            problems.append(
                f"{entries[left].file}: {left} belongs to no weight of the model that config.json describes"
            )
    return problems


def _dtype_problems(name: TensorName, entry: TensorEntry) -> list[str]:
    accepted = ("F32",) if name.float32 else ("BF16", FP8) if name.quantized else ("BF16",)
    if entry.dtype in accepted:
        return []
    return [f"{entry.file}: {name.hf} is {entry.dtype}; it must be {' or '.join(accepted)}"]


def _scale_problems(weight: TensorEntry, scale: TensorEntry | None) -> list[str]:
    rows, columns = weight.shape
    expected = (-(-rows // _BLOCK[0]), -(-columns // _BLOCK[1]))
    if scale is None:
        return [
            f"{weight.file}: {weight.name} is fp8 and its {SCALE_SUFFIX} {list(expected)} is missing; "
            "without it the bytes mean nothing: fetch the checkpoint again"
        ]
    if scale.dtype != "F32":
        return [f"{scale.file}: {scale.name} is {scale.dtype}; scales are F32"]
    if scale.shape != expected:
        return [
            f"{scale.file}: {scale.name} has shape {list(scale.shape)}; {list(weight.shape)} in blocks of 128 x 128 "
            f"has {list(expected)}"
        ]
    return []


def _identity(raw_config: bytes, headers: list[Header]) -> str:
    """Two revisions of one model have equal names, shapes and sizes; a mixture of both must never be published."""
    digest = xxhash.xxh3_128(raw_config)
    for header in headers:
        digest.update(f"{header.file.name} {header.size_bytes} {header.modified_s} {header.sample}\n".encode())
        for entry in header.tensors:
            digest.update(f"{entry.name} {entry.dtype} {entry.shape} {entry.begin}\n".encode())
    return digest.hexdigest()
