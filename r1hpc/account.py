"""The account of an iteration: what its parts report, put together and recorded when it is whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from r1hpc.actors.memory import MemoryReading
from r1hpc.clock import SaveClock
from r1hpc.colocate import Colocation
from r1hpc.metrics.build import Circumstances, eval_numbers, iteration_record
from r1hpc.metrics.metrics import Metrics
from r1hpc.metrics.progress import say_progress
from r1hpc.metrics.record import Number
from r1hpc.rollout.evaluation import EvalResult
from r1hpc.rollout.report import RolloutReport
from r1hpc.rundir import AttemptDir
from r1hpc.saving import Saving
from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.report import SyncReport

if TYPE_CHECKING:  # it loads torch
    from r1hpc.train.update_stats import UpdateStats


@dataclass
class Made:
    """What an iteration has so far."""

    seconds: Stopwatch = field(default_factory=Stopwatch)
    rollout: RolloutReport | None = None
    update: UpdateStats | None = None
    evals: Sequence[EvalResult] = ()
    memory: Mapping[str, Number] = field(default_factory=dict)


class Account:
    """Keeps the account of a run's iterations; those before the first of an attempt are other attempts'."""

    def __init__(
        self,
        metrics: Metrics,
        clock: SaveClock,
        saving: Saving,
        colocation: Colocation,
        attempt: AttemptDir,
        gpus: int,
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._saving = saving
        self._colocation = colocation
        self._attempt = attempt
        self._gpus = gpus
        self._ended = time.monotonic()

    @contextmanager
    def iteration(self, iteration: int) -> Iterator[Made]:
        """Record what the block has made, once it ends; an iteration that does not end is none."""
        made = Made()
        yield made
        now = time.monotonic()
        seconds, self._ended = now - self._ended, now
        self._clock.iterated(seconds)
        circumstances = Circumstances(
            iteration=iteration,
            attempt=self._attempt.root.name,
            finished=time.time(),
            gpus=self._gpus,
            seconds={
                "iteration": seconds,
                **made.seconds.seconds,
                **self._colocation.take_seconds(),
                **self._saving.take_seconds(),
            },
            committed=self._saving.last,
            saving=self._saving.pending,
            sync=_sync_numbers(self._colocation.last_sync),
            memory=made.memory,
        )
        record = iteration_record(circumstances, rollout=made.rollout, update=made.update, evals=made.evals)
        self._metrics.record(record)

    def doing(self, what: str, iteration: int | None = None, detail: str = "") -> None:
        """Say what goes on now, for `r1hpc.status`."""
        say_progress(self._attempt, what, iteration, detail)

    def add_final_evaluation(self, evals: Sequence[EvalResult]) -> None:
        """Of the weights after the last iteration."""
        self._metrics.add_final_evaluation(eval_numbers(evals))


def memory_numbers(readings: Sequence[MemoryReading]) -> dict[str, Number]:
    """The worst of all ranks, bytes: what is left where trainer and engine run, what a trainer's process holds."""
    return {
        "least_free": min(reading.free_bytes for reading in readings),
        "largest_trainer": max(reading.process_bytes for reading in readings),
    }


def _sync_numbers(report: SyncReport | None) -> dict[str, Number]:
    if report is None:
        return {}
    seconds = {f"{part}_s": spent for part, spent in report.seconds.items()}
    counts = {"engines": len(report.published), "failed": len(report.failed), "retried": len(report.retried)}
    return {"buckets": report.buckets, "bytes_per_gpu": report.bytes_per_gpu, **counts, **seconds}
