"""The nearest right name for a wrong one."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, or None where nothing is like it."""
    # difflib is imported on the sad path only: a valid configuration never needs it.
    from difflib import get_close_matches

    by_plain_name = {candidate.lower().replace("-", "_"): candidate for candidate in candidates}
    matches = get_close_matches(name.lower().replace("-", "_"), by_plain_name, n=1, cutoff=0.65)
    return by_plain_name[matches[0]] if matches else None
