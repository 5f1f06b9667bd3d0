"""Numbers as people read them; gigabytes are decimal throughout, as in disk and fabric speeds."""

from __future__ import annotations


def show_bytes(size: float) -> str:
    """1.34 TB, 38.0 GB, 235 MB, 328 kB, 576 B."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{_three_digits(size / factor)} {unit}"
    return f"{size:,.0f} B"


def show_count(count: float) -> str:
    """671 B, 6.34 B, 2.68 M, 334,886."""
    for unit, factor in (("B", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{_three_digits(count / factor)} {unit}"
    return f"{count:,.0f}"


def show_seconds(seconds: float) -> str:
    """0.1 s, 42 s, 7.83 min, 24 h."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h"


def show_range(low: float, high: float, form: str = ".0f") -> str:
    """15 to 27, or one number where both ends read the same."""
    shown = (f"{low:{form}}", f"{high:{form}}")
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def _three_digits(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
