"""One task of a cast or convert array: which one this process is, and how it behaves under Slurm's signals."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.config import Config, load_config
from r1hpc.errors import ConfigError, R1hpcError

QUIET_S = 10.0
"""Between lines of progress in a log; on a terminal they come every second."""
RunTask = Callable[[Config, int, int], None]
"""Called with configuration, index of the task, number of tasks."""


def say(line: str) -> None:
    """Print at once: a log that lags behind a killed task tells nothing."""
    print(line, flush=True)


def progress_interval_s() -> float:
    """Seconds between lines of progress."""
    return 1.0 if sys.stdout.isatty() else QUIET_S


def bear_signals(environment: Mapping[str, str]) -> None:
    """Take TERM as what it means here.

    In a batch job it begins the grace of a preemption: a task that left within it would count as failed and not come
    back, while one that is killed at its end is requeued; sbatch/*.sh start us with TERM ignored, and it stays so.
    Elsewhere, in an interactive allocation too, somebody wants the task to end.
    """
    batch = environment.get("SUBMITIT_EXECUTOR") == "slurm" or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    if batch:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def array_index(environment: Mapping[str, str]) -> int | None:
    """This element's index; None outside of an array."""
    text = environment.get("SLURM_ARRAY_TASK_ID")
    return None if text is None else int(text)


def lacking_elements(environment: Mapping[str, str], num_tasks: int) -> list[int]:
    """Tasks that this array has no element for; [] outside of an array."""
    words = [environment.get(f"SLURM_ARRAY_TASK_{word}") for word in ("MIN", "MAX", "STEP")]
    if None in words:
        return []
    least, most, step = (int(word or 0) for word in words)
    return sorted(set(range(num_tasks)) - set(range(least, most + 1, step or 1)))


def main(stage: str, run: RunTask, description: str | None, argv: Sequence[str] | None) -> int:
    """The command line of a stage by hand: one element of an array, or without an array all of it."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{stage}", description=description)
    parser.add_argument("config", type=Path, help="configuration file")
    parser.add_argument("--site", help="name of a file in configs/sites, or its path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args(argv)
    bear_signals(os.environ)
    try:
        config = load_config(arguments.config, site=arguments.site, overrides=arguments.overrides).config
        num_tasks = config.cast.num_tasks if stage == "cast" else config.convert.num_tasks
        index = array_index(os.environ)
        if lacking := lacking_elements(os.environ, num_tasks):
            say(
                f"note: this array has no element for {len(lacking)} of {num_tasks} tasks ({lacking[0]} to "
                f"{lacking[-1]}); nothing is published before they have run: sbatch --array=0-{num_tasks - 1}"
            )
        if index is None:
            run(config, 0, 1)
        elif index < num_tasks:
            run(config, index, num_tasks)
        else:
            say(f"element {index} has nothing to do: {stage}.num_tasks = {num_tasks}, the last one is {num_tasks - 1}")
    except ConfigError as error:
        print(f"{stage}: {error}", file=sys.stderr)
        return exit_codes.INVALID
    except R1hpcError as error:
        print(f"{stage}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; what is complete is kept, run it again to go on", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0
