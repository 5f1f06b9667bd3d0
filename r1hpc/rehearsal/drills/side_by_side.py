"""Drills several at a time, each a program of its own on a private Slurm of its own, and a line for each."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_PAUSE_S = 0.2
_END_S = 60
"""In which a drill that is told to leave has taken its cluster down."""


@dataclass(frozen=True)
class Play:
    """One drill and the arguments of `python -m r1hpc.rehearsal drill`."""

    name: str
    arguments: Sequence[str]


@dataclass
class _Playing:
    play: Play
    log: Path
    process: subprocess.Popen[bytes]


def play_side_by_side(plays: Sequence[Play], directory: Path, at_once: int, say: Callable[[str], None]) -> int:
    """Play them in order, `at_once` at a time; returns the exit code: 0 when all have passed.

    Says one line for each as it ends; all of its output is in directory/NAME.log. Interrupted, it ends them all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    waiting, playing, failed = list(plays), list[_Playing](), list[str]()
    started = time.monotonic()
    try:
        while waiting or playing:
            while waiting and len(playing) < at_once:
                playing.append(_start(waiting.pop(0), directory))
            for one in [one for one in playing if one.process.poll() is not None]:
                playing.remove(one)
                if one.process.returncode != 0:
                    failed.append(one.play.name)
                say(_line(one, directory))
            time.sleep(_PAUSE_S)
    finally:
        _end(playing)
    passed = len(plays) - len(failed)
    say(f"{passed} of {len(plays)} drills passed in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


def _start(play: Play, directory: Path) -> _Playing:
    log = directory / f"{play.name}.log"
    command = [sys.executable, "-m", "r1hpc.rehearsal", "drill", play.name, "--dir", str(directory), *play.arguments]
    with open(log, "wb") as stream:
        # A session of its own: Ctrl-C, which reaches a whole process group, and then our word would end it twice.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    return _Playing(play, log, process)


def _line(one: _Playing, directory: Path) -> str:
    """What the drill said of itself, in one line."""
    lines = one.log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line for line in lines if line.startswith(f"drill {one.play.name}: ")), None)
    if said is None:
        said = f"drill {one.play.name}: exit code {one.process.returncode}: {lines[-1] if lines else 'it said nothing'}"
    if one.process.returncode == 0:
        return said
    return f"{said}; everything that it said: {one.log}; run and logs: {directory / one.play.name}"


def _end(playing: Sequence[_Playing]) -> None:
    """Tell each to leave: it takes its cluster down first."""
    for one in playing:
        one.process.terminate()
    for one in playing:
        try:
            one.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            one.process.kill()
