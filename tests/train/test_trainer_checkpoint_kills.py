"""A save that a rank does not live through leaves nothing that looks complete, and the next one is not disturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from r1hpc.checkpoint.findings import Scope
from r1hpc.checkpoint.verify import verify
from r1hpc.config.training import CkptConfig
from r1hpc.model.parallel import Layout
from r1hpc.train.checkpoint.start import where_to_start
from tests.train.checkpointed import Trainer, World, quiet, rank

WORLD = World(2, Layout(tp=2, ep=2))
FILE_BYTES = 256 << 10
# Who is killed, and as it is about to do what: an audit event of the interpreter and the end of the path it is about.
MOMENTS = [
    (0, "open", "__0_0.distcp"),
    (1, "open", "__1_0.distcp"),
    (1, "open", "__1_5.distcp"),
    (0, "open", "__objects.distcp"),
    (0, "open", "trainer.json"),
    (0, "open", ".metadata"),
    (0, "open", "manifest.json"),
    (0, "os.rename", ".saving"),
]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints/iter_0000007"


@pytest.mark.parametrize(("victim", "event", "ending"), MOMENTS)
def test_killed_before_it_is_published_there_is_no_checkpoint(
    victim: int, event: str, ending: str, target: Path, tmp_path: Path
) -> None:
    def work(trainer: Trainer) -> None:
        if rank() == victim:
            _die_at(event, ending)
        trainer.save(target, file_bytes=FILE_BYTES)

    with pytest.raises(AssertionError, match=f"rank {victim}: ended without an answer|Connection (closed|reset)"):
        WORLD.run(tmp_path, work)
    assert not target.exists()
    # What is left does not keep the run from starting again, ...
    start = where_to_start(CkptConfig(hf_checkpoint="/models/hf", ref_load="/models/ref"), target.parent)
    assert start.rollout == 0
    # ... and the next save of the same iteration clears it away.
    _save_and_verify(target, tmp_path)


def test_killed_at_any_moment_there_is_a_whole_checkpoint_or_none(target: Path, tmp_path: Path) -> None:
    seconds = _save_and_verify(target, tmp_path)
    drawn = random.Random(1)
    killed = 0
    for number in range(6):
        moment = target.with_name(f"iter_{number:07d}")
        # The first at once: on a machine that was slower when it was measured, all others may come too late.
        delay = drawn.uniform(0, seconds) if number else 0.0

        def work(trainer: Trainer, moment: Path = moment, delay: float = delay, victim: int = number % 2) -> None:
            trainer.fill()
            pending = trainer.begin(moment, file_bytes=FILE_BYTES)
            if rank() == victim:
                threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            pending.finish()
            time.sleep(seconds)

        with pytest.raises(AssertionError, match=r"ended without an answer|Connection (closed|reset)"):
            WORLD.run(tmp_path, work)
        killed += not moment.exists()
        if moment.exists():
            _verify(moment)
    assert killed
    # The next save, of whatever iteration, clears away what they all left.
    shutil.rmtree(target)
    _save_and_verify(target, tmp_path)


def _die_at(event: str, ending: str) -> None:
    def hook(name: str, arguments: tuple[object, ...]) -> None:
        if name == event and str(arguments[0]).endswith(ending):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _save_and_verify(target: Path, scratch: Path) -> float:
    """Seconds that the save took."""

    def work(trainer: Trainer) -> float:
        trainer.fill()
        began = time.monotonic()
        trainer.begin(target, file_bytes=FILE_BYTES).finish()
        return time.monotonic() - began

    seconds = max(WORLD.run(scratch, work))
    assert [entry for entry in target.parent.iterdir() if entry.name.startswith(".")] == []
    _verify(target)
    return seconds


def _verify(target: Path) -> None:
    findings = verify(target, scope=Scope(hashes=True, values=False), workers=1, say=quiet)
    assert findings.problems == []
    assert any(line.startswith("hashes: ") for line in findings.checked)
