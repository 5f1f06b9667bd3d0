"""A status as text for a terminal of 80 to 120 columns."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from r1hpc.plan.units import show_seconds
from r1hpc.status.attempts import Attempt
from r1hpc.status.hours import GpuHours
from r1hpc.status.report import Status
from r1hpc.status.verdict import Verdict

_LABEL = 11
_WIDTHS = (80, 120)
_SHOWN = 10
"""Attempts that have a row of their own; --json has all."""
_FRESH_S = 300.0
"""What is older than this is not shown as if it were so now."""

_COMPLETE = ("complete", "not needed")


def render(status: Status, columns: int) -> str:
    """Paragraphs of `label  text`; what does not fit is continued under the text."""
    width = min(max(columns, _WIDTHS[0]), _WIDTHS[1])
    certain = "" if status.verdict.certain else " (as far as files tell)"
    paragraphs = [
        [("run", f"{status.noted.run_id} in {status.noted.directory.root}")],
        [
            ("state", f"{status.verdict.state}{certain}: {status.verdict.why}"),
            *_todo(status.verdict),
        ],
        _stages(status),
        [*_numbers(status)],
        _attempts(status),
        [*_ends(status)],
    ]
    shown = ["\n".join(_wrap(rows, width, status.verdict.commands)) for rows in paragraphs if rows]
    return "\n\n".join(shown)


def _todo(verdict: Verdict) -> list[tuple[str, str]]:
    """Each command has a row of its own: it is to be copied."""
    rows, rest = [], verdict.todo
    for command in verdict.commands:
        words, _, rest = rest.partition(command)
        rows += [words.strip(" ,;"), command]
    return _labelled("to do", [row for row in (*rows, rest.strip(" ,;")) if row])


def _stages(status: Status) -> list[tuple[str, str]]:
    rows = []
    for stage in status.stages:
        job = f"{stage.job_id}: {stage.detail}" if stage.job_id and stage.state not in _COMPLETE else stage.detail
        rows.append(f"{stage.name:<10} {stage.state:<14} {job.rstrip(' :')}".rstrip())
    return _labelled("stages", rows)


def _numbers(status: Status) -> Iterator[tuple[str, str]]:
    total = status.noted.num_rollout
    left = ""
    if status.seconds_left:
        left = f", {show_seconds(status.seconds_left)} left if nothing interrupts"
    yield "iterations", f"{status.iterations} of {'?' if total is None else total} done{left}"
    if status.progress is not None:
        yield "now", _progress(status)
    last = status.last
    if last is not None and last.get("rollout/reward") is not None:
        finished = last.get("rollout/reward_finished")
        of_all = "" if finished is None else f", {finished:.3f} of all that were graded"
        yield "reward", f"{last['rollout/reward']:.3f} of what is trained on{of_all} (iteration {last['iteration']})"
    for name, found in status.evaluations.items():
        accuracy = "not a number" if found.accuracy is None else f"{found.accuracy:.3f}"
        yield "held out", f"{name}: {accuracy} after {found.weight_version} iterations"
    yield "commit", _commit(status)


def _progress(status: Status) -> str:
    progress = status.progress or {}
    iteration = progress.get("iteration")
    where = "" if iteration is None else f" of iteration {iteration}"
    since = show_seconds(max(status.now - progress.get("since", status.now), 0.0))
    detail = f": {progress['detail']}" if progress.get("detail") else ""
    return f"{progress.get('what', 'unknown')}{where}, for {since}{detail}{_last_sign(status)}"


def _last_sign(status: Status) -> str:
    silent = 0.0 if status.silence is None else status.silence.seconds
    return f" (last sign {show_seconds(silent)} ago)" if silent > _FRESH_S else ""


def _commit(status: Status) -> str:
    commit = status.commit
    if commit is None:
        return f"none yet in {_short(status.noted.checkpoints, status)}"
    age = "" if commit.committed_at is None else f", {show_seconds(max(status.now - commit.committed_at, 0.0))} ago"
    return f"iteration {commit.iteration}{age}: {_short(commit.directory, status)}"


def _attempts(status: Status) -> list[tuple[str, str]]:
    """A row each: when it began, how long it held its nodes, what it did, why it ended."""
    if not status.attempts:
        return []
    shown = status.attempts[-_SHOWN:]
    rows = _earlier(status.attempts[: -len(shown)])
    names = max(len(attempt.name) for attempt in shown)
    for attempt in shown:
        lasted = show_seconds((attempt.over or status.now) - attempt.started) if _is_known(attempt, status) else "?"
        began = time.strftime("%b %d %H:%M", time.localtime(attempt.started))
        did = _spans(attempt.iterations)
        rows.append(f"{attempt.name:<{names}}  {began}  {lasted:>9}  {did:<12}  {_end(attempt, status)}".rstrip())
    return _labelled("attempts", rows)


def _earlier(attempts: Sequence[Attempt]) -> list[str]:
    """5 earlier ones: 1 crash, 4 preempted."""
    causes = [attempt.cause or "no end recorded" for attempt in attempts]
    told = ", ".join(f"{causes.count(cause)} {cause}" for cause in sorted(set(causes)))
    return [f"{len(attempts)} earlier ones: {told}"] if attempts else []


def _is_known(attempt: Attempt, status: Status) -> bool:
    return attempt.over is not None or status.verdict.state == "running"


def _end(attempt: Attempt, status: Status) -> str:
    if attempt.cause is None:
        is_last = attempt is status.attempts[-1]
        return "running" if is_last and status.verdict.state == "running" else "no end recorded"
    blamed = f", blames {', '.join(attempt.blamed)}" if attempt.blamed else ""
    said = attempt.said or attempt.reason
    return f"{attempt.cause}{blamed}" + (f": {said}" if said and attempt.cause != "done" else "")


def _ends(status: Status) -> Iterator[tuple[str, str]]:
    if status.attempts and status.hours.held:
        yield "GPU-hours", _hours(status.hours)
    logs = dict.fromkeys(path for stage in status.stages for path in stage.logs[:2])
    if status.attempts:
        logs |= dict.fromkeys(status.attempts[-1].logs[:2])
    yield from _labelled("logs", [_short(path, status) for path in logs])


def _hours(hours: GpuHours) -> str:
    parts = (("starting", hours.starting), ("done again", hours.again), ("not finished", hours.unfinished))
    lost = ", ".join(f"{_amount(value)} {name}" for name, value in parts if value)
    under_way = f"; {_amount(hours.under_way)} under way" if hours.under_way else ""
    return (
        f"{_amount(hours.held)} held: {_amount(hours.useful)} useful, {_amount(hours.lost)} lost"
        + (f" ({lost})" if lost else "")
        + under_way
    )


def _amount(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _spans(iterations: Sequence[int]) -> str:
    """0-8: they follow each other."""
    if not iterations:
        return "-"
    first, last = min(iterations), max(iterations)
    return f"it. {first}" if first == last else f"it. {first}-{last}"


def _short(path: Path, status: Status) -> str:
    """From the run directory on where it lies there."""
    try:
        return str(path.relative_to(status.noted.directory.root))
    except ValueError:
        return str(path)


def _labelled(label: str, rows: Sequence[str]) -> list[tuple[str, str]]:
    return [(label if number == 0 else "", row) for number, row in enumerate(rows)]


def _wrap(rows: Sequence[tuple[str, str]], width: int, whole: Sequence[str]) -> Iterator[str]:
    """whole: texts that stay on one line, however long."""
    for label, text in rows:
        if text in whole:
            yield f"{label:<{_LABEL}}{text}"
            continue
        # Columns of a table are kept: only what is too long is broken, at its words, never within a path.
        yield from textwrap.wrap(
            text,
            width,
            initial_indent=f"{label:<{_LABEL}}",
            subsequent_indent=" " * (_LABEL + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
