"""Slurm's time forms."""

from __future__ import annotations

import re

_SLURM_TIME = re.compile(r"(?:(?P<days>\d{1,9})-)?(?P<rest>\d{1,9}(?::\d{1,9}){0,2})")


def parse_minutes(value: object) -> object:
    """Whole minutes of a Slurm time: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; seconds round up.

    Anything that is not a string is returned as it is, for the field's own type check.
    Raises ValueError for a string of no such form. Source: sbatch(1), --time.
    """
    if not isinstance(value, str):
        return value
    match = _SLURM_TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no Slurm time: write minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S")
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return int(match["days"]) * 1440 + hours * 60 + minutes + (seconds > 0)
    if len(parts) == 3:
        return parts[0] * 60 + parts[1] + (parts[2] > 0)
    if len(parts) == 2:
        return parts[0] + (parts[1] > 0)
    return parts[0]


def format_slurm_time(minutes: int) -> str:
    """Minutes as D-HH:MM:SS or HH:MM:SS, the form that every Slurm tool prints."""
    days, rest = divmod(minutes, 1440)
    hours, left = divmod(rest, 60)
    clock = f"{hours:02d}:{left:02d}:00"
    return f"{days}-{clock}" if days else clock
