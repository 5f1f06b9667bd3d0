"""The convert stage: one array task writes its slices of the torch_dist checkpoint; the last one publishes it.

    sbatch sbatch/convert.sh CONFIG           an element of an array
    python -m jobs.convert CONFIG             all of it, here

Imports nothing heavy: a login node loads this to submit it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.array_task import bear_signals, progress_interval_s, say
from jobs.array_task import main as array_main
from r1hpc.config import Config, load_config
from r1hpc.errors import CheckpointError, ConfigError
from r1hpc.rundir import RunDir


@dataclass(frozen=True)
class ConvertTask:
    """The picklable job: one element of the array."""

    run_dir: str
    index: int

    def __call__(self) -> None:
        """Write this element's slices; publish when all are there. Raises CheckpointError naming file and tensor."""
        bear_signals(os.environ)
        config = load_config(RunDir(Path(self.run_dir)).config).config
        convert(config, self.index, config.convert.num_tasks)


def convert(config: Config, index: int, num_tasks: int) -> None:
    """Task `index` of `num_tasks` of the conversion that the configuration describes."""
    from r1hpc.checkpoint.conversion import make_slices, plan_conversion  # torch: only where it runs
    from r1hpc.checkpoint.convert import run_convert_task
    from r1hpc.checkpoint.hf_checkpoint import open_checkpoint

    section, ckpt = config.convert, config.ckpt
    if ckpt.ref_load is None:
        raise ConfigError(["ckpt.ref_load is null: it names the directory that the conversion writes"])
    if ckpt.bf16_checkpoint is not None and not os.path.isdir(ckpt.bf16_checkpoint):
        raise CheckpointError(
            f"ckpt.bf16_checkpoint = {ckpt.bf16_checkpoint}: is not there yet; run the cast first (sbatch "
            "sbatch/cast.sh), or set it to null: convert then reads fp8 directly"
        )
    source = open_checkpoint(Path(ckpt.bf16_checkpoint or ckpt.hf_checkpoint))
    slices = make_slices(
        source.shape.num_layers,
        section.pipeline_model_parallel_size,
        section.decoder_first_pipeline_num_layers,
        section.decoder_last_pipeline_num_layers,
        section.expert_model_parallel_size,
        section.balance,
    )
    pieces = section.tensor_chunks or config.perf.tensor_model_parallel_size
    plan = plan_conversion(source, Path(ckpt.ref_load), slices, pieces)
    workers = section.workers or min(section.cpus_per_task, -(-slices.count // num_tasks))
    run_convert_task(plan, index, num_tasks, workers, say, recheck=section.recheck, every_s=progress_interval_s())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return array_main("convert", convert, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
