"""python -m r1hpc.canary.prepare RUN: cut the model of a run and convert the cut, unless that is done.

A process of its own, on the head: its workers are forked, which a process that is connected to Ray cannot bear.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r1hpc.canary.config import canary_config
from r1hpc.canary.cut import plan_cut, write_cut
from r1hpc.canary.layers import cut_layers
from r1hpc.checkpoint.cast import plan_cast, run_cast_task
from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import run_convert_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.staged_work import StagedWork
from r1hpc.config import Config, load_config
from r1hpc.config.dump import dump_config
from r1hpc.errors import ConfigError, ProblemsError, R1hpcError
from r1hpc.exit_codes import CRASHED, INVALID, SUCCESS
from r1hpc.plan import plan_to_json
from r1hpc.plan.array_stages import convert_workers
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.plan import make_plan
from r1hpc.plan.units import show_bytes
from r1hpc.publish import publish_json, publish_text
from r1hpc.rundir import RunDir

Say = Callable[[str], None]


def prepare(run: RunDir, say: Say) -> None:
    """Make everything that a canary reads. May be killed on any line, and called again. Raises R1hpcError."""
    if not run.config.is_file():
        raise ConfigError(
            [f"{run.root}: is no run directory: it has no {run.config.name}; submit prints the right one"]
        )
    config = load_config(run.config).config
    shape = read_model_shape(Path(config.ckpt.hf_checkpoint))
    layers = cut_layers(config, shape)
    canary = canary_config(config, layers, run.canary)
    cut = plan_cut(Path(config.ckpt.hf_checkpoint), run.canary.model, layers)
    say(f"the canary has {layers.num_layers} of {shape.num_layers} layers: {show_bytes(cut.size_bytes)}")
    workers = convert_workers(canary.convert, 1)
    _make_way(cut, say)
    write_cut(cut, workers, say)
    if canary.ckpt.bf16_checkpoint is not None:
        cast = plan_cast(run.canary.model, Path(canary.ckpt.bf16_checkpoint))
        _make_way(cast, say)
        run_cast_task(cast, 0, 1, workers, say)
    _convert(canary, run.canary.torch_dist, workers, say)
    _open_run(run, canary)


def _convert(canary: Config, target: Path, workers: int, say: Say) -> None:
    section = canary.convert
    source = open_checkpoint(Path(canary.ckpt.hf_checkpoint))
    slices = make_slices(
        source.shape.num_layers,
        section.pipeline_model_parallel_size,
        section.decoder_first_pipeline_num_layers,
        section.decoder_last_pipeline_num_layers,
        section.expert_model_parallel_size,
        section.balance,
    )
    conversion = plan_conversion(source, target, slices, canary.perf.tensor_model_parallel_size)
    _make_way(conversion, say)
    run_convert_task(conversion, 0, 1, workers, say, recheck=section.recheck)


def _make_way(work: StagedWork[Any], say: Say) -> None:
    """Remove what an earlier model left here: these directories are nobody else's."""
    if work.final.exists() and work.identity_found() != work.identity:
        say(f"{work.final} was made of another model, or otherwise: it is made anew")
        shutil.rmtree(work.final)


def _open_run(run: RunDir, canary: Config) -> None:
    """The canary's run directory, as far as an attempt reads it."""
    directory = run.canary.run
    directory.root.mkdir(parents=True, exist_ok=True)
    publish_text(directory.config, dump_config(canary))
    canary = load_config(directory.config).config
    publish_json(directory.plan, plan_to_json(make_plan(canary, read_model_shape(run.canary.model))))
    publish_text(directory.run, run.run.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; problems go to standard error."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.canary.prepare", description=__doc__)
    parser.add_argument("run", type=Path, help="the run directory")
    try:
        prepare(RunDir(parser.parse_args(argv).run), lambda line: print(line, flush=True))
    except R1hpcError as error:
        print(error, file=sys.stderr)
        return INVALID if isinstance(error, ProblemsError) else CRASHED
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
