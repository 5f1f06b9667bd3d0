"""--sweep a.b=x,y: the run directories of a sweep, one a combination."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from r1hpc.errors import SubmitError

_outer_commas = re.compile(r",(?![^\[{]*[\]}])")
"""Commas outside of brackets: optimizer.betas=[0.9,0.98],[0.9,0.95] has two values."""
_NOT_SWEPT = ("ckpt", "cast", "convert", "hosts", "slurm", "vars")


def combinations(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the values, as overrides: ["a.b=x,y", "c=1,2"] gives four tuples.

    Raises SubmitError for a sweep without values, over one key twice, or over a section that all elements share.
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        choices = [value.strip() for value in _outer_commas.split(values) if value.strip()]
        if not equals or not choices:
            raise SubmitError(f"--sweep {sweep}: write KEY=VALUE,VALUE (grpo.eps_clip_high=0.24,0.28)")
        if key in axes:
            raise SubmitError(f"--sweep {key} is given twice; put all its values into one")
        if key.partition(".")[0] in _NOT_SWEPT or key == "run.name" or key == "run.root":
            raise SubmitError(f"--sweep {key}: all elements of the array share it; submit separate runs instead")
        if len(set(choices)) < len(choices):
            raise SubmitError(f"--sweep {sweep}: a value is given twice")
        axes[key] = choices
    if not axes:
        return []
    return [
        tuple(f"{key}={value}" for key, value in zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]


def element_name(name: str, overrides: Sequence[str]) -> str:
    """A run name for one element: deepseek-r1.eps_clip_high-0.28."""
    parts = [override.partition("=")[0].rpartition(".")[2] + "-" + override.partition("=")[2] for override in overrides]
    return ".".join([name, *(re.sub(r"[^A-Za-z0-9._-]+", "_", part) for part in parts)])
