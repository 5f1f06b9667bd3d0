"""How fast rollouts are apart from the engines: requests, their added latency, memory, and grading.

    python benchmarks/rollout.py

Runs benchmarks.rollout_streams, benchmarks.rollout_memory and benchmarks.rewards one after another, each in a process
of its own, and prints a line a figure and, last, all of them as one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PARTS = ("benchmarks.rollout_streams", "benchmarks.rollout_memory", "benchmarks.rewards")
DEADLINE_S = 900


def main() -> None:
    """Measure every part."""
    figures: dict[str, float] = {}
    for part in PARTS:
        done = subprocess.run(
            [sys.executable, "-m", part], cwd=HOME, check=True, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S
        )
        *lines, last = done.stdout.strip().splitlines()
        print(*lines, sep="\n", flush=True)
        figures |= json.loads(last)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
