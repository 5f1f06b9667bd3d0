"""From a preemption's signal to training again: how long, and where the time goes.

    python benchmarks/requeue.py [RUN]

Plays `python -m r1hpc.rehearsal drill preempt` on a private Slurm and reads what its run left; RUN: reads this run
directory instead, whose second attempt went on where the first was preempted. Prints a line a part and, last, all of
them as one JSON object. `slurm_s` is what Slurm takes between the end of one attempt and the beginning of the next.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from r1hpc.rehearsal.spec import default_directory

DEADLINE_S = 1800


def main() -> int:
    """Measure or read, print."""
    if len(sys.argv) > 1:
        return _print(Path(sys.argv[1]))
    parent = default_directory().parent  # not /tmp, which nodes replace by one of their own
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="requeue-", dir=parent) as folder:
        command = [sys.executable, "-m", "r1hpc.rehearsal", "drill", "preempt", "--dir", folder]
        subprocess.run(command, check=True, timeout=DEADLINE_S, stdout=sys.stderr)
        (run,) = Path(folder).glob("preempt/shared/runs/*")
        return _print(run)


def _print(run: Path) -> int:
    figures = {name: round(value, 2) for name, value in measure(run).items()}
    for name, value in figures.items():
        print(f"{name:20s} {value:8.2f} s")
    print(json.dumps(figures))
    return 0


def measure(run: Path) -> dict[str, float]:
    """Seconds of each part of the first preemption."""
    first, second = sorted(run.glob("attempts/*"), key=lambda path: _json(path / "begin.json")["started"])[:2]
    asked, left = _said(first, "asked to stop by"), _said(first, r"exit code 75")
    ended, began = _json(first / "end.json")["ended"], _json(second / "begin.json")["started"]
    ray, engines = _said(second, "Ray is up on"), _said(second, "engines are up", optional=True)
    trainers, loading = _said(second, "trainers are up"), _said(second, "resuming")
    line = next(line for line in _lines(run / "metrics.jsonl") if line["attempt"] == second.name)
    iteration_began = line["finished"] - line["seconds/iteration"]
    first_rollout = iteration_began + line.get("seconds/sync", 0.0) + line.get("seconds/engines_wake", 0.0)
    parts = {
        "stop_s": left - asked,
        "leave_s": ended - left,
        "slurm_s": began - ended,
        "preflight_and_ray_s": ray - began,
        "engines_s": (engines or ray) - ray,
        "trainers_s": trainers - (engines or ray),
        "load_s": iteration_began - loading,
        "first_sync_s": first_rollout - iteration_began,
    }
    total = first_rollout - asked
    return {
        **parts,
        "other_s": total - sum(parts.values()),
        "total_s": total,
        "without_slurm_s": total - (began - ended),
    }


def _said(attempt: Path, pattern: str, *, optional: bool = False) -> float:
    """Unix time of the first line of the driver's log that says this."""
    (log,) = (attempt / "logs").glob("*-driver.log")
    for line in log.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ", line)
        if match is not None and re.search(pattern, line):
            return datetime.datetime.fromisoformat(match[1]).timestamp() + int(match[2]) / 1000
    if optional:
        return 0.0
    raise SystemExit(f"{log}: says nothing of '{pattern}'")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _json(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


if __name__ == "__main__":
    sys.exit(main())
