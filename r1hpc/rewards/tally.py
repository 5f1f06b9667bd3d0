"""How the scores came about, and whether a run may go on with them."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence

from r1hpc.rewards.request import Outcome, RewardError, Score

_LOG = logging.getLogger(__name__)
_MIN_SCORED = 64
_LAST_SCORED = 256
"""A function may fail after weeks, when what it asks goes away: then millions of good scores must not hide it."""
_MAX_FAILED_SHARE = 0.5
_FAULTS: tuple[Outcome, ...] = ("error", "crashed")
_FAULTS_OF_CUSTOM: tuple[Outcome, ...] = (*_FAULTS, "timeout", "memory")
"""A built-in reward that takes too long or too much is the answer's fault, a function of the user its own."""


class Tally:
    """Counts of outcomes."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        """Of all responses scored."""
        self._failed: deque[bool] = deque(maxlen=_LAST_SCORED)

    def add(self, scores: Sequence[Score], custom: bool) -> None:
        """Count scores that came of one call.

        Raises RewardError when most of the last ones failed: that is a fault, and a run must not train on its zeros.
        """
        faults = _FAULTS_OF_CUSTOM if custom else _FAULTS
        self.outcomes.update(score.outcome for score in scores)
        self._failed.extend(score.outcome in faults for score in scores)
        outcome, detail = scores[0].outcome, scores[0].detail
        if outcome not in faults:
            return
        failed, total = sum(self._failed), len(self._failed)
        _LOG.warning("reward function failed (%s; %d of the last %d): %s", outcome, failed, total, detail)
        if total >= _MIN_SCORED and failed > _MAX_FAILED_SHARE * total:
            raise RewardError(
                f"the reward function failed for {failed} of the last {total} responses, which would all be trained on "
                f"with reward 0; the last one, {outcome}:\n{detail}"
            )
