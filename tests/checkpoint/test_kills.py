"""Killed with SIGKILL at any moment, a task that is run again ends in the same bytes and leaves nothing behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.checkpoint.runs import cast, contents, convert, forked, leaves_with

MOMENTS = 20
# 15 million parameters: 30 MB to write.
SIZES = {"hidden_size": 512, "moe_intermediate_size": 256, "n_routed_experts": 8, "vocab_size": 2048}
Task = Callable[[Path], object]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("kills")
    write_tiny_model(base / "fp8", overrides=SIZES, shards=6)
    cast(base / "fp8", base / "bf16")
    yield base
    shutil.rmtree(base)


def duration_s(task: Task, target: Path) -> float:
    """Seconds that it takes undisturbed."""
    began = time.monotonic()
    with forked(lambda: task(target)) as child:
        assert leaves_with(child) == 0
    return time.monotonic() - began


def killed(task: Task, target: Path, after_s: float, kill: Callable[[int, int], None]) -> bool:
    """Run the task in a child and kill it; whether it was still at work."""
    with forked(lambda: task(target)) as child:
        time.sleep(after_s)
        with suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
        code = leaves_with(child)
        assert code in (0, -signal.SIGKILL)
        # At once, with workers of the killed parent perhaps dying still.
        task(target)
    return code != 0


@pytest.mark.parametrize("form", ["cast", "convert", "convert-fp8"])
def test_killed_at_twenty_moments_it_ends_in_the_same_bytes(base: Path, tmp_path: Path, form: str) -> None:
    tasks: dict[str, Task] = {
        "cast": lambda target: cast(base / "fp8", target, workers=2),
        "convert": lambda target: convert(base / "bf16", target, workers=2),
        "convert-fp8": lambda target: convert(base / "fp8", target, workers=2),
    }
    task = tasks[form]
    takes_s = min(duration_s(task, tmp_path / name) for name in ("warm-up", "again", "whole"))
    whole = contents(tmp_path / "whole")
    for name in ("warm-up", "again"):
        shutil.rmtree(tmp_path / name)
    generator = random.Random(form)
    hits = 0
    for number in range(MOMENTS):
        target = tmp_path / f"run-{number}"
        after_s = takes_s * (number + generator.random()) / MOMENTS
        hits += killed(task, target, after_s, os.killpg if number % 2 else os.kill)
        assert contents(target) == whole, f"killed after {after_s:.3f} s"
        assert {path.name for path in tmp_path.iterdir()} == {"whole", target.name}, f"killed after {after_s:.3f} s"
        shutil.rmtree(target)
    shutil.rmtree(tmp_path / "whole")
    # A machine that got faster since the task was timed lets some runs end before their kill.
    assert hits > MOMENTS // 4
