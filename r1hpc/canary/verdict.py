"""Whether what a canary did was as it must be. Pure; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from r1hpc.canary.bound import Bound
from r1hpc.sync.report import SyncReport


@dataclass(frozen=True)
class Iterated:
    """What one iteration of the canary came to."""

    iteration: int
    served: Mapping[str, int]
    """Responses that each engine with the weights has finished in the rollout."""
    mismatch_abs: float | None
    """Mean difference of engine and trainer in log-probs; None where the update reports none."""
    mismatch_max: float | None
    grad_norm: float


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be, and the step that it speaks of."""

    step: str
    text: str


def of_sync(sync: SyncReport | None, version: int) -> list[str]:
    """What is wrong with a publication of these weights."""
    if sync is None or sync.version != version:
        found = "none" if sync is None else f"version {sync.version}"
        return [f"weights {version} were to be published, and the last that were are {found}"]
    return [f"{name} has not got weights {version}: {why}" for name, why in sync.failed.items()]


def findings(iterated: Sequence[Iterated], bound: Bound) -> list[Finding]:
    """Everything that is wrong with the iterations, in the order in which it came about."""
    return [finding for one in iterated for finding in _of_one(one, bound)]


def _of_one(one: Iterated, bound: Bound) -> Iterator[Finding]:
    when = f"iteration {one.iteration}"
    for name, count in one.served.items():
        if not count:
            yield Finding("sampling", f"{when}: {name} finished no response; the others took its share")
    if one.mismatch_abs is None or not one.mismatch_abs <= bound.value:
        weights = "the first weights" if one.iteration == 0 else "an update, after memory was released and taken again"
        yield Finding(
            "sampling",
            f"{when}: with {weights} the engines' log-probs differ from the trainer's by {_shown(one.mismatch_abs)} in"
            f" the mean, {_shown(one.mismatch_max)} at most; the mean may be {bound.value:g} ({bound.why})",
        )
    if not math.isfinite(one.grad_norm):
        yield Finding("updating", f"{when}: the norm of the gradients is {one.grad_norm}")
    elif one.grad_norm == 0:
        yield Finding("updating", f"{when}: all gradients are 0, although rewards differ: nothing was learned")


def _shown(value: float | None) -> str:
    return "an unknown amount" if value is None else f"{value:.2g}"
