"""Every drill: its name, what it proves, and what it is played on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from r1hpc.rehearsal.drills import (
    array_element,
    enginekill,
    finish_in_grace,
    halfcheckpoint,
    headkill,
    nodefail,
    noprogress,
    preempt,
    same,
    scancel,
    walltime,
)
from r1hpc.rehearsal.drills.scene import Scene


@dataclass(frozen=True)
class Drill:
    """One way to break a run."""

    play: Callable[[Scene], str]
    """Submits, breaks, waits for the end; says how it went. Raises DrillError."""
    proves: str
    settings: tuple[str, ...] = ()
    """Of the run: KEY=VALUE."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ClusterSpec."""
    spare_nodes: int = 0
    """That the cluster has beyond those of the run."""
    stages: tuple[str, ...] = ("train",)
    """Stages of submit that it may be played with, the usual one first."""
    engines: bool = False
    """It makes no sense with rollouts replayed."""


BRING_UP_TOO = ("train", "preflight")

DRILLS: Mapping[str, Drill] = {
    "preempt": Drill(preempt.once, "preempted, the run goes on where it was", stages=BRING_UP_TOO),
    "preempt3": Drill(preempt.three_times, "preempted three times at random moments, the run completes"),
    "preempt3-replayed": Drill(
        same.play, "preempted three times with its rollouts replayed, a run trains bit for bit the same"
    ),
    "walltime": Drill(walltime.play, "out of time, the run commits in time and goes on", walltime.SETTINGS),
    "scancel": Drill(scancel.play, "a cancelled run stays cancelled and leaves nothing", stages=BRING_UP_TOO),
    "nodefail": Drill(
        nodefail.play, "without one of its nodes the run goes on on others", spare_nodes=1, stages=BRING_UP_TOO
    ),
    "headkill": Drill(headkill.play, "without Ray's head the attempt ends at once, and the next goes on"),
    "enginekill": Drill(enginekill.play, "without one of its engines the attempt goes on", engines=True),
    "halfcheckpoint": Drill(halfcheckpoint.play, "a half-written checkpoint is never chosen", halfcheckpoint.SETTINGS),
    "finish-in-grace": Drill(
        finish_in_grace.play,
        "a run that completes while it is preempted is complete",
        finish_in_grace.SETTINGS,
        cluster={"grace_s": finish_in_grace.GRACE_S},
    ),
    "noprogress": Drill(
        noprogress.play, "a run that never gets anywhere is held for a person", noprogress.SETTINGS, stages=BRING_UP_TOO
    ),
    "array-element": Drill(
        array_element.play,
        "the last element of an array runs again alone",
        array_element.SETTINGS,
        spare_nodes=1,
        stages=("preflight",),
    ),
}
