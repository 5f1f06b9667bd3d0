"""python -m r1hpc.rehearsal.tiny_model OUT: a DeepSeek-R1 of any size, with random weights, in the released form."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from r1hpc.checkpoint.names import tensors
from r1hpc.errors import CheckpointError, R1hpcError
from r1hpc.plan.model_shape import model_shape
from r1hpc.publish import fsync_directory, publish_json
from r1hpc.rehearsal.tiny_config import TINY_R1, read_overrides, tiny_config
from r1hpc.rehearsal.tiny_shards import plan_shards, write_shards
from r1hpc.rehearsal.tiny_tokenizer import generation_config_json, tokenizer_config_json, tokenizer_json
from r1hpc.rehearsal.tiny_weights import stored_sizes, stored_tensors


@dataclass(frozen=True)
class TinyModel:
    """What was written."""

    directory: Path
    num_tensors: int
    """Scales included."""
    num_shards: int
    size_bytes: int
    """Of the tensors."""


def write_tiny_model(
    out: Path,
    *,
    config: Path = TINY_R1,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    shards: int = 3,
    mtp: bool = True,
    fp8: bool = True,
    force: bool = False,
) -> TinyModel:
    """Write the checkpoint directory `out`: configuration, tokenizer, weights in `shards` files or more.

    Equal seeds and sizes give equal values however many the files; bf16 has the values that fp8 is quantized from.
    With `force` a checkpoint in `out` is replaced. Raises R1hpcError for what cannot be written as asked; `out` is
    then as it was.
    """
    values = tiny_config(config, overrides or {}, mtp=mtp, fp8=fp8)
    names = tensors(model_shape(values, config))
    sizes = list(stored_sizes(names, fp8))
    plan = plan_shards(sizes, shards)
    jsons = {
        "config.json": values,
        "generation_config.json": generation_config_json(values),
        "tokenizer.json": tokenizer_json(values),
        "tokenizer_config.json": tokenizer_config_json(values),
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
            size_bytes = write_shards(made, plan, stored_tensors(names, fp8, seed))
            _put_in_place(made, out, Path(beside) / "replaced")
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror}: {error.filename})") from error
    return TinyModel(out, len(sizes), len(plan), size_bytes)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one checkpoint and return the exit status; problems go to standard error, without a traceback."""
    options = _parser().parse_args(arguments)
    begin = time.perf_counter()
    try:
        made = write_tiny_model(
            options.out,
            config=options.config,
            overrides=read_overrides(options.overrides),
            seed=options.seed,
            shards=options.shards,
            mtp=options.mtp,
            fp8=options.fp8,
            force=options.force,
        )
    except R1hpcError as error:
        print(f"tiny_model: {error}", file=sys.stderr)
        return 1
    took_s = time.perf_counter() - begin
    print(
        f"{made.directory}: {made.num_tensors} tensors, {made.size_bytes / 1e6:.1f} MB"
        f" in {made.num_shards} files, {took_s:.1f} s"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m r1hpc.rehearsal.tiny_model", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--config", type=Path, default=TINY_R1, help="config.json to begin with (default: tiny-r1's)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="values of config.json to set anew, e.g. hidden_size=192 q_lora_rank=null",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=3, help="fewest safetensors files (default: %(default)s)")
    parser.add_argument("--no-mtp", dest="mtp", action="store_false", help="without multi-token-prediction layers")
    parser.add_argument("--bf16", dest="fp8", action="store_false", help="weights in bf16, not in blocks of fp8")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint that is in OUT")
    return parser


if __name__ == "__main__":
    sys.exit(main())
