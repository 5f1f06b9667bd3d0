"""The cast stage: one array task casts its share of the block-fp8 files to bf16.

    sbatch sbatch/cast.sh CONFIG              an element of an array
    python -m jobs.cast CONFIG                all of it, here

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
from r1hpc.errors import ConfigError
from r1hpc.rundir import RunDir


@dataclass(frozen=True)
class CastTask:
    """The picklable job: one element of the array."""

    run_dir: str
    index: int

    def __call__(self) -> None:
        """Cast this element's files; publish when all are there. Raises CheckpointError naming file and tensor."""
        bear_signals(os.environ)
        config = load_config(RunDir(Path(self.run_dir)).config).config
        cast(config, self.index, config.cast.num_tasks)


def cast(config: Config, index: int, num_tasks: int) -> None:
    """Task `index` of `num_tasks` of the cast that the configuration describes."""
    from r1hpc.checkpoint.cast import plan_cast, run_cast_task  # torch: only where it runs

    if config.ckpt.bf16_checkpoint is None:
        raise ConfigError(
            ["ckpt.bf16_checkpoint is null: there is no bf16 copy to be made; convert reads fp8 directly"]
        )
    plan = plan_cast(Path(config.ckpt.hf_checkpoint), Path(config.ckpt.bf16_checkpoint))
    run_cast_task(plan, index, num_tasks, config.cast.workers, say, progress_interval_s())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return array_main("cast", cast, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
