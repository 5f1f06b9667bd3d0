"""Whether a torch_dist checkpoint holds every weight of a model exactly once, judged by its metadata and file sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from r1hpc.checkpoint.boxes import coverage_problem, whole
from r1hpc.checkpoint.names import TensorName, extra_state_keys
from r1hpc.checkpoint.placement import find_place
from r1hpc.checkpoint.release_records import ReleaseManifest
from r1hpc.checkpoint.torch_dist import TRACKER, Chunk, Extent, StoredTensor, TorchDist
from r1hpc.checkpoint.training_state import is_training_state
from r1hpc.plan.model_shape import ModelShape

VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")


def coverage_problems(checkpoint: TorchDist) -> Iterator[str]:
    """Tensors whose chunks leave a part out or hold one twice: Megatron loads them without a word."""
    if not checkpoint.tensors:
        yield f"{checkpoint.directory}: holds no tensor"
    for key, tensor in checkpoint.tensors.items():
        problem = coverage_problem(whole(tensor.shape), [chunk.box for chunk in tensor.chunks])
        if problem:
            yield f"{checkpoint.directory}: {key} {list(tensor.shape)}: {problem}"


def model_problems(
    checkpoint: TorchDist, shape: ModelShape, names: Sequence[TensorName], *, converted: bool
) -> Iterator[str]:
    """Weights of the model that the checkpoint lacks or has in another shape or dtype, and keys of no weight.

    converted: by us, so that nothing but the model's weights, in bf16, may be in it; a training run's checkpoint has
    an optimizer and random states too, may be in float32, and may lack the prediction layers.
    """
    used: set[str] = set()
    judged: set[str] = set()
    for name in names:
        used |= {name.key, name.te_key or name.key}
        place = find_place(name, shape.num_layers, checkpoint.tensors.keys())
        if place is None:
            if converted or not name.key.startswith("mtp."):
                yield f"{checkpoint.directory}: has no {name.key}, which {name.hf} becomes"
            continue
        used.add(place.key)
        # Thousands of experts share one tensor, a copy has that of its original: it is judged once.
        if place.key not in judged:
            judged.add(place.key)
            yield from _tensor_problems(checkpoint, name, checkpoint.tensors[place.key], place.shape, converted)
    for key in sorted(checkpoint.tensors.keys() - used):
        if converted or not is_training_state(key):
            yield f"{checkpoint.directory}: {key} belongs to no weight of the model that config.json describes"
    if converted:
        yield from _released_form_problems(checkpoint, shape, names)


def file_problems(checkpoint: TorchDist, recorded: Mapping[str, int]) -> Iterator[str]:
    """Files that are missing or cut, and ranges of bytes that two tensors share.

    recorded: size of each file, from the manifest; {} where there is none.
    """
    ends: dict[str, int] = {}
    for extent in checkpoint.extents():
        ends[extent.file] = max(ends.get(extent.file, 0), extent.offset + extent.length)
    for name in sorted(ends.keys() | recorded.keys()):
        size = _size(checkpoint.directory / name)
        expected = recorded.get(name)
        if size is None:
            yield f"{checkpoint.directory / name}: is missing"
        elif expected is not None and size != expected:
            yield f"{checkpoint.directory / name}: has {size:,} bytes, the manifest says {expected:,}"
        elif size < ends.get(name, 0):
            yield f"{checkpoint.directory / name}: has {size:,} bytes, its last tensor ends at {ends[name]:,}"
    yield from _shared_bytes(checkpoint)


def form_problems(checkpoint: TorchDist) -> Iterator[str]:
    """What Megatron needs beside the tensors: the name of the format, and the tracker that points to the checkpoint."""
    file = checkpoint.directory / "metadata.json"
    try:
        backend = json.loads(file.read_text(encoding="utf-8")).get("sharded_backend")
        if backend != "torch_dist":
            yield f"{file}: sharded_backend is {backend!r}; it must be 'torch_dist'"
    except (OSError, ValueError, AttributeError) as error:
        yield f"{file}: cannot be read ({error}); Megatron does not load a checkpoint without it"
    if checkpoint.directory.name == "release":
        tracker = checkpoint.directory.parent / TRACKER
        try:
            word = tracker.read_bytes().strip()
            found = "" if word == b"release" else f"says {word[:40].decode(errors='replace')!r}"
        except OSError as error:
            found = f"cannot be read ({error.strerror})"
        if found:
            yield f"{tracker}: {found}; it must say release, or --ref-load does not find the checkpoint"


def manifest_problems(checkpoint: TorchDist, manifest: ReleaseManifest) -> Iterator[str]:
    """Where `.metadata` and the manifest do not say the same of a chunk.

    A second name of a tensor stands in `.metadata` alone; its chunks are those of the first.
    """
    written = {
        (stored.key, stored.chunk.offsets, stored.chunk.sizes, file, stored.offset, stored.length)
        for file, chunks in manifest.chunks.items()
        for stored in chunks
    }
    named = {
        (key, chunk.box.offset, chunk.box.sizes, chunk.extent.file, chunk.extent.offset, chunk.extent.length)
        for key, tensor in checkpoint.tensors.items()
        for chunk in tensor.chunks
    }
    for key, offset, sizes, file, begin, _ in sorted(written - named):
        yield (
            f"{checkpoint.directory / file}: {key} at {list(offset)} of {list(sizes)} was written at byte {begin}; "
            ".metadata does not say so"
        )
    keys, unnamed = {row[0] for row in written}, {row[1:] for row in written}
    for row in sorted(named - written):
        key, offset, sizes, file, begin, _ = row
        if key in keys or row[1:] not in unnamed:
            yield (
                f"{checkpoint.directory / file}: .metadata says that {key} at {list(offset)} of {list(sizes)} begins "
                f"at byte {begin}; the manifest does not"
            )


def _tensor_problems(
    checkpoint: TorchDist, name: TensorName, stored: StoredTensor, shape: tuple[int, ...], converted: bool
) -> Iterator[str]:
    label = f"{checkpoint.directory}: {stored.key}"
    if stored.shape != shape:
        if stored.key in VOCABULARY and stored.shape[1:] == shape[1:]:
            yield (
                f"{label}: has {stored.shape[0]} rows of vocabulary, config.json says {shape[0]}; Megatron would pad "
                "or cut without a word"
            )
        else:
            yield f"{label}: has shape {list(stored.shape)}; config.json asks for {list(shape)}"
    accepted = [torch.float32] if name.float32 else [torch.bfloat16, *([] if converted else [torch.float32])]
    if stored.dtype not in accepted:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in accepted)
        yield f"{label}: is {str(stored.dtype).removeprefix('torch.')}; it must be {wanted}"


def _released_form_problems(checkpoint: TorchDist, shape: ModelShape, names: Sequence[TensorName]) -> Iterator[str]:
    """Both names of a norm, for either spec of Megatron; the empty objects that it asks for."""
    for name in names:
        if name.te_key is None or name.key not in checkpoint.tensors:
            continue
        alias = checkpoint.tensors.get(name.te_key)
        if alias is None:
            yield f"{checkpoint.directory}: has no {name.te_key}, the name of {name.key} with Transformer Engine's spec"
        elif alias.chunks != checkpoint.tensors[name.key].chunks:
            yield f"{checkpoint.directory}: {name.te_key} and {name.key} are one tensor, but not the same bytes"
    for key in extra_state_keys(shape):
        if key not in checkpoint.objects:
            yield f"{checkpoint.directory}: has no {key}, without which Megatron does not load"


def _shared_bytes(checkpoint: TorchDist) -> Iterator[str]:
    """Ranges that overlap without being one: names of one tensor, and all empty objects, share theirs on purpose."""
    owners: dict[Extent, tuple[StoredTensor, Chunk]] = {}
    for tensor in checkpoint.tensors.values():
        for chunk in tensor.chunks:
            owner, first = owners.setdefault(chunk.extent, (tensor, chunk))
            two_names = owner is not tensor and owner.chunks == tensor.chunks
            if first is not chunk and not two_names:
                yield (
                    f"{checkpoint.directory / chunk.extent.file}: {owner.key} {first.box} and {tensor.key} {chunk.box} "
                    "are stored in the same bytes"
                )
    labels = {extent: key for key, extent in checkpoint.objects.items()}
    labels |= {extent: f"{tensor.key} {chunk.box}" for extent, (tensor, chunk) in owners.items()}
    for before, after in pairwise(sorted(labels, key=lambda extent: (extent.file, extent.offset))):
        if before.file == after.file and before.offset + before.length > after.offset:
            yield (
                f"{checkpoint.directory / after.file}: {labels[before]} ends after byte {after.offset}, where "
                f"{labels[after]} begins"
            )


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None
