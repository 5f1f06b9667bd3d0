"""The numbers for TensorBoard, by its own writer: no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from r1hpc.metrics.record import NOT_FINITE

logger = logging.getLogger(__name__)

_NO_CURVES = ("iteration", "finished")


class Board:
    """Event files of one attempt in the run's directory.

    It shows what metrics.jsonl has: where it cannot be written, that is logged once and the run goes on.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        """first_step: what earlier attempts wrote from there on is not shown any more."""
        self._writer: EventFileWriter | None = None
        self._try(lambda: self._open(directory, first_step))

    def write(self, step: int, finished: float, numbers: Mapping[str, Any]) -> None:
        """Numbers by tag; what is no number is left out, what is not finite shown as such."""
        values = {tag: value for tag, value in numbers.items() if isinstance(value, int | float)}
        values |= {tag: float(value) for tag, value in numbers.get(NOT_FINITE, {}).items()}
        curves = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if tag not in _NO_CURVES]
        self._try(lambda: self._add(Event(wall_time=finished, step=step, summary=Summary(value=curves))))

    def close(self) -> None:
        """Nothing can be written any more."""
        if (writer := self._writer) is not None:
            self._try(writer.close)
            self._writer = None

    def _open(self, directory: Path, first_step: int) -> None:
        self._writer = EventFileWriter(str(directory))
        # TensorBoard forgets what files before this one have from this step on.
        self._add(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def _add(self, event: Event) -> None:
        if self._writer is not None:
            self._writer.add_event(event)
            self._writer.flush()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            logger.exception("TensorBoard's files cannot be written; metrics.jsonl has all numbers")
            self._writer = None
