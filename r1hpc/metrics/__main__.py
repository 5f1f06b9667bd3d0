"""python -m r1hpc.metrics RUN: draw the curves of a run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from r1hpc.errors import R1hpcError
from r1hpc.metrics.history import read_history
from r1hpc.rundir import RunDir


class CannotDraw(R1hpcError):
    """There are no iterations to draw, or nothing to draw with."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.metrics", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--output", type=Path, help="picture to write; default: RUN/curves.png")
    arguments = parser.parse_args(argv)
    try:
        print(draw(RunDir(arguments.run), arguments.output))
    except (R1hpcError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def draw(run: RunDir, output: Path | None = None) -> Path:
    """Draw what is recorded; the picture's path."""
    lines = read_history(run.metrics).lines
    if not lines:
        raise CannotDraw(f"{run.metrics} has no iteration yet; `python -m r1hpc.status {run.root}` says why")
    try:
        from r1hpc.metrics.curves import draw_curves
    except ImportError as error:
        raise CannotDraw(f"curves need matplotlib, which this Python has not ({error}): {sys.executable}") from error
    path = output or run.curves
    if not path.parent.is_dir():
        raise CannotDraw(f"{path}: there is no directory {path.parent}; make it, or name another --output")
    draw_curves(path, _name(run), lines)
    return path


def _name(run: RunDir) -> str:
    try:
        return str(json.loads(run.run.read_text(encoding="utf-8"))["run_id"])
    except (OSError, ValueError, KeyError):
        return run.root.resolve().name


if __name__ == "__main__":
    sys.exit(main())
