"""The scheduler of pytest-xdist that deals out groups of tests."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.spread import group_of


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals them out in the order in which the workers collected them.

    Not by the markers of --dist loadgroup: pytest-xdist 3.8 writes them where pytest 9.2 does not read any more.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
