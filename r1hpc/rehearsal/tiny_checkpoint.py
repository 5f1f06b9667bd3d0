"""A checkpoint directory as it is released: configuration, tokenizer, weights in safetensors files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.errors import CheckpointError
from r1hpc.plan.model_shape import model_shape
from r1hpc.publish import fsync_directory, publish_json
from r1hpc.rehearsal.tiny_shards import plan_shards, write_shards
from r1hpc.rehearsal.tiny_tokenizer import generation_config_json, tokenizer_config_json, tokenizer_json
from r1hpc.rehearsal.tiny_weights import stored_sizes, stored_tensors


@dataclass(frozen=True)
class Written:
    """What was written."""

    directory: Path
    num_tensors: int
    """Scales included."""
    num_shards: int
    size_bytes: int
    """Of the tensors."""


def write_checkpoint(
    out: Path,
    config: Mapping[str, Any],
    values_of: Callable[[TensorName], Tensor],
    *,
    shards: int,
    force: bool,
    words: Sequence[str] = (),
) -> Written:
    """Write the directory `out`: fp8 where `config` has a quantization_config, else bf16; `shards` files or more.

    config: that of `tiny_config`. values_of: of each tensor, bf16 or float32 as its name says. words: tokens of the
    tokenizer, besides bytes and marks. With `force` a checkpoint in `out` is replaced.
    Raises R1hpcError for what cannot be written as asked; `out` is then as it was.
    """
    fp8 = "quantization_config" in config
    names = tensors(model_shape(config, out / "config.json"))
    sizes = list(stored_sizes(names, fp8))
    plan = plan_shards(sizes, shards)
    jsons = {
        "config.json": config,
        "generation_config.json": generation_config_json(config),
        "tokenizer.json": tokenizer_json(config, words),
        "tokenizer_config.json": tokenizer_config_json(config),
    }
    out = out.resolve()
    _check_free(out, force)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            for file, value in jsons.items():
                publish_json(made / file, value)
            size_bytes = write_shards(made, plan, stored_tensors(names, fp8, values_of))
            _put_in_place(made, out, Path(beside) / "replaced")
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}: {error.filename})") from error
    return Written(out, len(sizes), len(plan), size_bytes)


def _check_free(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise CheckpointError(f"{out}: exists; give another directory, or --force to replace it")
    if not (out / "config.json").is_file():
        raise CheckpointError(f"{out}: holds no config.json; --force replaces checkpoints and nothing else")


def _put_in_place(made: Path, out: Path, replaced: Path) -> None:
    """Rename `made` to `out`; what was there goes to `replaced`, and comes back where that fails."""
    if out.exists():
        out.rename(replaced)
    try:
        made.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise
    fsync_directory(out.parent)
