"""Training: packing, log-probs, and whole updates of the tiny model, each beside the usual way.

    python benchmarks/training.py

Runs benchmarks.packing, benchmarks.logprobs and benchmarks.training_step one after another, each in a process of its
own, and prints what they print. The last line is one JSON object of all their figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
PARTS = ("benchmarks.packing", "benchmarks.logprobs", "benchmarks.training_step")
TIMEOUT_S = 600


def main() -> int:
    """Measure and report."""
    figures: dict[str, float] = {}
    for part in PARTS:
        print(f"== {part}", flush=True)
        figures |= run(part)
    print(json.dumps(figures))
    return 0


def run(part: str, *arguments: str) -> dict[str, float]:
    """The figures of one part, from its last line; raises CalledProcessError if it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", part, *arguments],
        cwd=HOME,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    print(done.stdout, end="", flush=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(main())
