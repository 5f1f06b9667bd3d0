"""What an attempt records: a JSON line on the disk first, then TensorBoard, then a line for people."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from r1hpc.metrics.console import console_line
from r1hpc.metrics.history import add_to_last_line, append_line, rewind
from r1hpc.metrics.record import EvalNumbers, IterationRecord, Line, evaluation_items, plain
from r1hpc.metrics.remaining import remaining_s
from r1hpc.metrics.tensorboard import Board
from r1hpc.rundir import RunDir

logger = logging.getLogger(__name__)


class Metrics:
    """The record of a run, from the driver of one attempt. Raises OSError where it cannot be kept."""

    def __init__(
        self, run: RunDir, first_iteration: int, num_rollout: int, say: Callable[[str], None] = logger.info
    ) -> None:
        """Drop what a killed attempt recorded from first_iteration on: it is done again."""
        self._run = run
        self._num_rollout = num_rollout
        self._say = say
        self._lines: tuple[Line, ...] = rewind(run.metrics, first_iteration).lines
        self._board = Board(run.tensorboard, first_iteration)
        self._next = first_iteration
        if [line["iteration"] for line in self._lines] != list(range(first_iteration)):
            logger.warning(
                "%s has %d lines of the %d iterations before", run.metrics, len(self._lines), first_iteration
            )

    def record(self, record: IterationRecord) -> None:
        """Record the next iteration."""
        assert record.iteration == self._next, f"iteration {record.iteration} recorded, {self._next} was due"
        line = record.to_json()
        append_line(self._run.metrics, line)
        self._lines = (*self._lines, line)
        self._next += 1
        self._board.write(record.iteration, record.finished, line)
        self._say(console_line(line, self._num_rollout, remaining_s(self._lines, self._num_rollout)))

    def add_final_evaluation(self, evals: Mapping[str, EvalNumbers]) -> None:
        """Add to the last iteration's line what the weights after it score; in TensorBoard the step after it."""
        found = plain(evaluation_items("final_eval", evals))
        self._lines = add_to_last_line(self._run.metrics, self._lines, found)
        self._board.write(self._next, time.time(), plain(evaluation_items("eval", evals)))
        told = ", ".join(_score(name, numbers) for name, numbers in evals.items())
        self._say(f"after iteration {self._next - 1} of {self._num_rollout}: {told}")

    def close(self) -> None:
        """Everything is on the disk."""
        self._board.close()

    @property
    def lines(self) -> tuple[Line, ...]:
        """Of every iteration that counts, in the order of iterations."""
        return self._lines


def _score(name: str, numbers: EvalNumbers) -> str:
    return f"eval of {name} {numbers.pass_at.get(1, numbers.reward):.3f}"
