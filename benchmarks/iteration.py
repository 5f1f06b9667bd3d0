"""Where the time of an iteration goes: phases, switches between them, weight sync, commits.

    python benchmarks/iteration.py [RUN]

RUN: a run directory with at least 3 iterations, `.rehearsal/runs/rehearsal` by default, as `make rehearse` leaves it.
Prints a line a part and, last, all as one JSON object. Medians over all iterations but the first, in which kernels,
caches and connections are made.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEFAULT = Path(".rehearsal/runs/rehearsal")
SWITCHES = ("trainers_sleep", "memory", "engines_wake", "engines_sleep", "trainers_wake")


def main() -> int:
    """Read, print."""
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    if len(lines) < 3:
        print(f"{run}: has {len(lines)} iterations; medians need 3 or more: make rehearse", file=sys.stderr)
        return 1
    figures = {name: round(value, 3) for name, value in measure(lines[1:]).items()}
    for name, value in figures.items():
        print(f"{name:24s} {value:,.3f}")
    print(json.dumps(figures))
    return 0


def measure(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Medians of the parts of these iterations."""
    plain = [line for line in lines if "seconds/eval" not in line] or lines
    parts = {part: _median(plain, f"seconds/{part}") for part in ("iteration", "rollout", "sync", "update", "save")}
    switch = statistics.median(sum(line.get(f"seconds/{part}", 0.0) for part in SWITCHES) for line in plain)
    named = parts["rollout"] + parts["sync"] + parts["update"] + parts["save"] + switch
    return {
        **{f"{part}_s": seconds for part, seconds in parts.items()},
        "phase_switch_s": switch,
        "other_s": parts["iteration"] - named,
        "stop_s": _median(plain, "seconds/rollout/stop"),
        **_commit(lines),
        "sync_send_s": _median(plain, "sync/send_s"),
        "sync_check_s": _median(plain, "sync/check_s"),
        "sync_bytes_per_gpu": _median(plain, "sync/bytes_per_gpu"),
        "tokens_per_s_rollout": _median(plain, "tokens_per_s/rollout"),
        "tokens_per_s_train": _median(plain, "tokens_per_s/train"),
        "logprob_difference": _median(plain, "loss/mismatch_abs"),
    }


def _commit(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What a commit takes; nothing where none became valid in these iterations."""
    taken = [line for line in lines if "seconds/commit" in line]
    return {"commit_s": _median(taken, "seconds/commit")} if taken else {}


def _median(lines: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(float(line.get(key, 0.0)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
