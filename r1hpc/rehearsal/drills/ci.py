"""`drill --ci`: every way to break a run that CI can afford, as small as it makes sense, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.drills.layouts import ONE_NODE, TWO_NODES
from r1hpc.rehearsal.drills.side_by_side import Play

AT_ONCE = 4
"""They mostly wait; each takes up to 3 GB."""

SMALL = (
    "rollout.num_rollout=8",
    "rollout.rollout_batch_size=4",
    "rollout.over_sampling_batch_size=8",
    "rollout.n_samples_per_prompt=4",
    "eval.eval_interval=null",
    "hosts.bring_up_timeout_s=240",
)


@dataclass(frozen=True)
class Part:
    """One drill as CI plays it."""

    name: str
    layout: tuple[str, ...] = TWO_NODES
    live: bool = False
    """With an engine; else it trains on made rollouts."""


PARTS = (
    # The longest first.
    Part("walltime", (*ONE_NODE, "rollout.num_rollout=24")),
    Part("preempt", ONE_NODE, live=True),
    Part("enginekill", ONE_NODE, live=True),
    Part("nodefail"),
    Part("noprogress", ONE_NODE),
    Part("scancel"),
    Part("halfcheckpoint"),
    Part("headkill"),
    Part("finish-in-grace", ONE_NODE),
    Part("array-element", ONE_NODE),
)


def plays(names: Sequence[str], common: Sequence[str]) -> list[Play]:
    """The parts with these names, or all; `common`: arguments of each, which count more than its own."""
    unknown = [name for name in names if name not in {part.name for part in PARTS}]
    if unknown:
        raise RehearsalError(f"no drill of CI: {', '.join(unknown)}; there are {', '.join(p.name for p in PARTS)}")
    return [Play(part.name, [*_arguments(part), *common]) for part in PARTS if not names or part.name in names]


def _arguments(part: Part) -> list[str]:
    replay = [] if part.live else ["--replay", "auto"]
    return [*replay, *(word for setting in (*SMALL, *part.layout) for word in ("--set", setting))]
