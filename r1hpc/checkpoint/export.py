"""torch_dist to Hugging Face, in bf16 or block fp8: files of their own, streamed, the index last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.companions import copy_companions, publish_config, publish_index
from r1hpc.checkpoint.export_plan import Export, ExportFile, is_quantized
from r1hpc.checkpoint.fp8 import quantize
from r1hpc.checkpoint.fp8_format import QUANTIZATION
from r1hpc.checkpoint.hf_checkpoint import FP8, MANIFEST, SCALE_SUFFIX
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.shard_writer import ShardWriter, writing_shard
from r1hpc.checkpoint.space import require_space
from r1hpc.checkpoint.stored_weights import StoredWeights
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, remove_stale

FORMAT = 1


def run_export(export: Export, num_workers: int, say: Callable[[str], None]) -> TaskOutcome:
    """Write the files that are not done yet, then publish. Killed at any moment it can be run again.

    Raises CheckpointError when room is short, or when a weight cannot be read or written.
    """
    try:
        export.parts.mkdir(parents=True, exist_ok=True)
        for other in export.parts.parent.iterdir():
            if other != export.parts:
                # Its files will be written over: the records would lie.
                shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"{export.target}: cannot be made ({error.strerror})") from error
    missing = [file for file in export.files if not _is_done(export, file)]
    for file in missing:
        remove_stale(export.target / file.name)
    size = sum(file.size_bytes for file in missing)
    require_space(export.target, size, "the export")
    weights = _Weights(export)
    progress = Progress("export", size, say)
    done = run_units(missing, lambda file, advance: _write_file(weights, file, advance), num_workers, progress)
    theirs = export.like.config.get("quantization_config")
    if export.fp8 and theirs not in (None, QUANTIZATION):
        say(f"quantization_config is {json.dumps(QUANTIZATION)}; that of {export.like.directory} is of other scales")
    _publish(export)
    say(f"{export.target} is complete")
    return TaskOutcome(True, size, done.peak_bytes)


def _is_done(export: Export, file: ExportFile) -> bool:
    part = read_record(export.part(file))
    try:
        return bool(part) and (export.target / file.name).stat().st_size == part["size"]
    except FileNotFoundError:
        return False


def _write_file(weights: _Weights, file: ExportFile, advance: Advance) -> None:
    export = weights.export
    with writing_shard(export.target / file.name, file.layout) as writer:
        for name in file.names:
            for size_bytes in weights.write(name, writer):
                advance(size_bytes)
    publish_json(export.part(file), {"size": writer.size_bytes, "tensors": writer.hashes})


class _Weights:
    """Brings weights from the checkpoint, or those that it lacks from the one that it is laid out like, to a file.

    Every worker has its own copy, made by its fork, and keeps files open and buffers from one file to the next.
    """

    def __init__(self, export: Export) -> None:
        self.export = export
        self._stored = StoredWeights(export.checkpoint, export.like.shape.num_layers)
        self._like = BandReader(export.like)

    def write(self, name: TensorName, writer: ShardWriter) -> Iterator[int]:
        """Write one weight; yields the bytes of each band."""
        lacking = self.export.place(name) is None
        quantized = is_quantized(name, self.export.fp8)
        if lacking and quantized and self.export.like.entries[name.hf].dtype == FP8:
            # As they are: dequantizing and quantizing again may move a scale by its last bit.
            for part in (name.hf, name.hf + SCALE_SUFFIX):
                for _, values in self._like.stored_bands(part):
                    writer.append(part, values)
                    yield values.nbytes
            return
        for row, values in self._like.bands(name.hf) if lacking else self._stored.bands(name):
            if quantized:
                codes, scales = quantize(values, name=name.hf, first_row=row)
                writer.append(name.hf, codes)
                writer.append(name.hf + SCALE_SUFFIX, scales)
                yield codes.nbytes + scales.nbytes
            else:
                writer.append(name.hf, values)
                yield values.nbytes


def _publish(export: Export) -> None:
    """Manifest, companions, configuration and, last, the index, which makes the directory a checkpoint."""
    parts = {file.name: read_record(export.part(file)) for file in export.files}
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": part["size"], "tensors": part["tensors"]} for name, part in parts.items()},
        "source": {"path": str(export.checkpoint.directory.resolve()), "identity": export.identity},
    }
    config = dict(export.like.config)
    if export.fp8:
        # Scales of another kind, as other releases have them, would be read by rules that are not those of ours.
        config["quantization_config"] = QUANTIZATION
    try:
        publish_json(export.target / MANIFEST, manifest)
        copy_companions(export.like.directory, export.target)
        publish_config(config, export.target, quantized=export.fp8)
        weight_map = {name: file.name for file in export.files for name, _, _ in file.layout}
        publish_index(export.target, weight_map, sum(file.size_bytes for file in export.files))
    except OSError as error:
        raise CheckpointError(f"{export.target}: cannot be published ({error}); run the export again") from error
    for file in export.files:
        remove_stale(export.target / file.name)
    shutil.rmtree(export.parts, ignore_errors=True)
    with suppress(OSError):
        export.parts.parent.rmdir()  # unless it holds something else
