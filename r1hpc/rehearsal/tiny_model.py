"""python -m r1hpc.rehearsal.tiny_model OUT: a DeepSeek-R1 of any size, with random weights, in the released form."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.tiny_checkpoint import Written, write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, read_overrides, tiny_config
from r1hpc.rehearsal.tiny_weights import tensor_values


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
) -> Written:
    """Write the checkpoint directory `out`: configuration, tokenizer, weights in `shards` files or more.

    Equal seeds and sizes give equal values however many the files; bf16 has the values that fp8 is quantized from.
    With `force` a checkpoint in `out` is replaced. Raises R1hpcError for what cannot be written as asked; `out` is
    then as it was.
    """
    values = tiny_config(config, overrides or {}, mtp=mtp, fp8=fp8)
    return write_checkpoint(out, values, partial(tensor_values, seed=seed), shards=shards, force=force)


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
