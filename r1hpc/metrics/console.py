"""One iteration as a line for people."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.metrics.record import Line
from r1hpc.plan.units import show_seconds

_PARTS = ("rollout", "sync", "eval", "update", "save")
"""Parts of an iteration worth their place in the line, where they were timed."""


def console_line(line: Line, num_rollout: int, remaining_s: float | None) -> str:
    """iteration 12 of 200: reward 0.534 (0.512 of all); ...; 14.2 min (rollout 9.8 min, ...); 44.1 h left; ..."""
    parts = [part for part in (_reward(line), _lengths(line), _loss(line), _difference(line)) if part]
    parts += [*_evals(line), *filter(None, [_speed(line), _time(line), _left(remaining_s), _commit(line)])]
    return f"iteration {line['iteration']} of {num_rollout}: " + "; ".join(parts)


def _reward(line: Line) -> str:
    if "rollout/reward" not in line:
        return ""
    return f"reward {_fixed(line, 'rollout/reward')} ({_fixed(line, 'rollout/reward_finished')} of all)"


def _lengths(line: Line) -> str:
    if "rollout/response_len_mean" not in line:
        return ""
    return f"length {line['rollout/response_len_mean']:,.0f}, {line['rollout/truncated']:.1%} truncated"


def _loss(line: Line) -> str:
    """KL, clip fraction, entropy and gradient, of those that there are."""
    told = (
        ("kl", "loss/kl", ".2e"),
        ("clipped", "loss/clip_fraction", ".2%"),
        ("entropy", "loss/entropy", ".3f"),
        ("grad norm", "train/grad_norm", ".3g"),
    )
    return ", ".join(f"{name} {_number(line, key, form)}" for name, key, form in told if key in line)


def _difference(line: Line) -> str:
    """Between the engine's log-probs and the trainer's."""
    if "loss/mismatch_abs" not in line:
        return ""
    mean, most = (_number(line, f"loss/mismatch_{name}", ".1e") for name in ("abs", "max"))
    return f"log-probs differ by {mean}, at most {most}"


def _evals(line: Line) -> Iterator[str]:
    """eval of heldout 0.625: its accuracy."""
    for key in line:
        if key.startswith(("eval/", "final_eval/")) and key.endswith("/pass@1"):
            yield f"eval of {key.removesuffix('/pass@1').partition('/')[2]} {_fixed(line, key)}"


def _speed(line: Line) -> str:
    told = (("sampled", "tokens_per_s/rollout"), ("trained", "tokens_per_s/train"))
    return ", ".join(f"{line[key]:,.0f} tokens/s {name}" for name, key in told if line.get(key))


def _time(line: Line) -> str:
    if line.get("seconds/iteration") is None:
        return ""
    parts = [f"{part} {show_seconds(line[key])}" for part in _PARTS if line.get(key := f"seconds/{part}")]
    return show_seconds(line["seconds/iteration"]) + (f" ({', '.join(parts)})" if parts else "")


def _left(remaining_s: float | None) -> str:
    return "" if remaining_s is None else f"{show_seconds(remaining_s)} left"


def _commit(line: Line) -> str:
    newest, saving = line.get("committed"), line.get("saving")
    told = "nothing committed yet" if newest is None else f"committed {newest}"
    return told if saving is None else f"{told}, saving {saving}"


def _fixed(line: Line, key: str) -> str:
    return _number(line, key, ".3f")


def _number(line: Line, key: str, form: str) -> str:
    """As formatted; what was not finite by its name."""
    value = line.get(key)
    return str(line.get("not_finite", {}).get(key, "none")) if value is None else f"{value:{form}}"
