"""The curves of a run as a picture: small multiples over the iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from r1hpc.metrics.record import Line
from r1hpc.publish import publishing

_STRONG, _SECOND, _THIRD = "#1f4e79", "#b5651d", "#6b7a3a"
"""Told apart by lightness too, as in a print without colours."""
_COLORS = (_STRONG, _SECOND, _THIRD, "#7a5195", "#4d4d4d")
_QUIET, _FAINT = "#606060", "#dddddd"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _QUIET,
    "axes.labelcolor": _QUIET,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
}
_INCHES, _DPI = (10.0, 9.0), 120


@dataclass(frozen=True)
class Curve:
    """A line of a panel: points in the order of iterations."""

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One of the small multiples."""

    title: str
    curves: tuple[Curve, ...]
    form: Callable[[Axes, Sequence[float]], None] = lambda axes, values: None
    """Sets up the y axis for these values."""


def draw_curves(path: Path, name: str, lines: Sequence[Line]) -> None:
    """Publish the picture of at least one iteration."""
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, hspace=0.05, wspace=0.05)
        figure = Figure(figsize=_INCHES, layout=layout)
        axes_list = figure.subplots(3, 2, sharex=True).flatten()
        for axes, panel in zip(axes_list, _panels(lines), strict=True):
            _draw(axes, panel, attempt_starts(lines))
        for axes in axes_list[-2:]:
            axes.set_xlabel("iteration")
        figure.suptitle(_title(name, lines), x=0.01, ha="left", fontsize=12)
        with publishing(path) as stream:
            FigureCanvasAgg(figure).print_figure(stream, dpi=_DPI, format="png")


def attempt_starts(lines: Sequence[Line]) -> list[int]:
    """The first iterations of all attempts but the first."""
    return [after["iteration"] for before, after in pairwise(lines) if before.get("attempt") != after.get("attempt")]


def accuracy_curves(lines: Sequence[Line]) -> tuple[Curve, ...]:
    """Held-out accuracy by set, over the number of iterations that the weights were trained for."""
    points: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for key in line:
            prefix, _, rest = key.partition("/")
            if prefix in ("eval", "final_eval") and rest.endswith("/pass@1") and line[key] is not None:
                name = rest.removesuffix("/pass@1")
                points.setdefault(name, []).append((line[f"{prefix}/{name}/weight_version"], line[key]))
    return tuple(Curve(name, tuple(found)) for name, found in points.items())


def _panels(lines: Sequence[Line]) -> tuple[Panel, ...]:
    def curve(label: str, key: str) -> Curve:
        return Curve(label, tuple((line["iteration"], line[key]) for line in lines if line.get(key) is not None))

    return (
        Panel("Reward", (curve("trained on", "rollout/reward"), curve("all graded", "rollout/reward_finished"))),
        Panel("Held-out accuracy", accuracy_curves(lines), _percent),
        Panel(
            "Response length, tokens",
            (curve("mean", "rollout/response_len_mean"), curve("longest", "rollout/response_len_max")),
            _from_zero,
        ),
        Panel("Truncated responses", (curve("of those trained on", "rollout/truncated"),), _percent),
        Panel(
            "Log-probs: engine against trainer, KL to the reference",
            (
                curve("mean |difference|", "loss/mismatch_abs"),
                curve("largest", "loss/mismatch_max"),
                curve("KL", "loss/kl"),
            ),
            _logarithmic,
        ),
        Panel(
            "Tokens per second",
            (curve("sampled", "tokens_per_s/rollout"), curve("trained", "tokens_per_s/train")),
            _counts,
        ),
    )


def _draw(axes: Axes, panel: Panel, attempts: Sequence[int]) -> None:
    axes.set_title(panel.title)
    drawn = [curve for curve in panel.curves if curve.points]
    for curve, color in zip(drawn, _COLORS * len(drawn), strict=False):
        x, y = zip(*curve.points, strict=True)
        # Few points are seen as points, many as a line.
        marker = "o" if len(x) <= 40 else ""
        axes.plot(x, y, color=color, linewidth=1.5, marker=marker, markersize=3, label=curve.label, clip_on=False)
    for first in attempts:
        axes.axvline(first - 0.5, color=_QUIET, linewidth=0.6, linestyle=(0, (2, 3)))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not drawn:
        axes.text(0.5, 0.5, "none recorded", transform=axes.transAxes, ha="center", va="center", color=_QUIET)
        axes.set_yticks([])
        return
    panel.form(axes, [y for curve in drawn for _, y in curve.points])
    if len(panel.curves) > 1 or panel.title == "Held-out accuracy":
        axes.legend(loc="best")


def _title(name: str, lines: Sequence[Line]) -> str:
    attempts = len(attempt_starts(lines)) + 1
    more = f", {attempts} attempts (dotted: an attempt begins)" if attempts > 1 else ""
    return f"{name}: {len(lines)} iterations{more}"


def _percent(axes: Axes, values: Sequence[float]) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _from_zero(axes, values)


def _counts(axes: Axes, values: Sequence[float]) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    _from_zero(axes, values)


def _from_zero(axes: Axes, values: Sequence[float]) -> None:
    # All zeros would be drawn in the middle of an axis from -0.05 to 0.05.
    axes.set_ylim(bottom=0, top=None if max(values) > 0 else 0.1)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Unless a value is negative, as k1 can be. A zero, the KL of the first iteration, is left out."""
    if min(values) >= 0 and max(values) > 0:
        axes.set_yscale("log", nonpositive="mask")
