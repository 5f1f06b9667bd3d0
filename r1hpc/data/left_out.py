"""What of the data is not used: counted, said, and fatal where it is too much."""

from __future__ import annotations

from collections import Counter

from r1hpc.data.errors import DataError
from r1hpc.data.rows import RowError

MAX_BAD_SHARE = 0.001
"""One broken line in 17,000 is an accident that should not keep 128 GPUs waiting. More than one in a thousand is none:
a wrong key, another format, a writer that failed. In a file of less than 1,000 rows any bad row is too much."""

_SHOWN_OF_A_KIND = 3


class LeftOut:
    """Rows that are no prompts, and prompts that are too long."""

    def __init__(self) -> None:
        self.num_bad = 0
        self.kinds: Counter[str] = Counter()
        self.examples: list[str] = []
        """`line 17 is not JSON: ...`, the first three of each kind."""
        self.num_overlong = 0
        self.longest = 0
        """Tokens."""

    def add_bad(self, place: str, error: RowError) -> None:
        """Count a row that is no prompt."""
        self.num_bad += 1
        self.kinds[error.kind] += 1
        if self.kinds[error.kind] <= _SHOWN_OF_A_KIND:
            self.examples.append(f"{place} {error}")

    def add_overlong(self, num_tokens: int) -> None:
        """Count a prompt that is too long."""
        self.num_overlong += 1
        self.longest = max(self.longest, num_tokens)

    def check(self, name: str, num_rows: int, max_bad_share: float) -> None:
        """Raise DataError where more than this share of the rows is bad."""
        if self.num_bad <= max_bad_share * num_rows:
            return
        heading = (
            f"{name}: {self.num_bad:,} of {num_rows:,} rows ({self.num_bad / num_rows:.3%}) are no prompts; "
            f"at most {max_bad_share:.3%} may be left out: mend the file, or set rollout.input_key, rollout.label_key "
            "and rollout.apply_chat_template to what it holds"
        )
        raise DataError("\n".join([heading, *self.bad_lines()]))

    def bad_lines(self) -> list[str]:
        """Counts by kind, then the first of each kind; [] when there are none."""
        counts = [f"  {count:,} x {kind}" for kind, count in self.kinds.most_common()]
        more = self.num_bad - len(self.examples)
        return [*counts, *(f"  {example}" for example in self.examples), *([f"  and {more:,} more"] if more else [])]
