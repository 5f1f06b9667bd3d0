"""What would surely fail on the allocated hosts although every value is valid; told before anything is queued."""

from __future__ import annotations

import os
from collections.abc import Callable

from r1hpc.checkpoint.commits.belonging import refuse_other_runs
from r1hpc.config import Config
from r1hpc.config.import_paths import check_import_paths
from r1hpc.errors import ConfigError
from r1hpc.submit.order import Order, Say
from r1hpc.submit.prepare import read_json, run_directory
from r1hpc.submit.stages import commits_of

_SHELL_CHARACTERS = frozenset(" \t'\"`$~*?;&|<>()\\=")


def certain_failures(order: Order, say: Say) -> list[str]:
    """Problems of an order's own code, interpreter and directory of commits; what cannot be known here is said."""
    problems = _interpreter(order.config)
    if any(stage.name == "train" for stage in order.stages):
        if not order.elements:  # each of a sweep commits to its own run directory
            problems += _problems_of(lambda: _refuse_other_runs(order.config))
        problems += _problems_of(lambda: _look_up_own_code(order, say))
    return problems


def _problems_of(check: Callable[[], None]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return error.problems
    return []


def _look_up_own_code(order: Order, say: Say) -> None:
    for notice in check_import_paths(order.loaded):
        say(f"note: {notice}")


def _refuse_other_runs(config: Config) -> None:
    """As the driver does once more before it sweeps anything there."""
    refuse_other_runs(commits_of(config), read_json(run_directory(config).run).get("run_id"))


def _interpreter(config: Config) -> list[str]:
    """A slurm.python that no node can have: a path on the run's own file system, where nothing is."""
    python = config.slurm.python
    if python is None or config.slurm.container or not python.startswith("/") or _SHELL_CHARACTERS & set(python):
        return []  # a command that the job's own shell looks up, or a path in a container
    if not _on_one_file_system(python, config.run.root) or (os.path.isfile(python) and os.access(python, os.X_OK)):
        return []
    what = "is not executable" if os.path.exists(python) else "no such file"
    return [
        f"slurm.python = {python}: {what}; give the interpreter of an environment that all nodes see, or leave it out:"
        " the jobs then run the one that submits"
    ]


def _on_one_file_system(path: str, root: str) -> bool:
    """Whether a path lies on the file system of run.root, which is the same one on every node."""
    device = _device(path)
    return device is not None and device == _device(root)


def _device(path: str) -> int | None:
    """Of the nearest directory above that is there; null where that is the root, and nothing of the path is here."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return None if path == "/" else os.stat(path).st_dev
