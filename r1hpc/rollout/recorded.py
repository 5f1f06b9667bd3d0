"""Rollouts kept as files, and trained on again without engines: runs then differ in training alone, or not at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from r1hpc.config.training import RolloutConfig
from r1hpc.publish import remove_stale
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.rollout_file import RecordedRollout, load_rollout, rollout_path, save_rollout
from r1hpc.rollout.sampler import Rollout
from r1hpc.rollout.state import SamplerState

logger = logging.getLogger(__name__)


class Rollouts(Protocol):
    """Where the rollouts of a run come from: a Sampler, a Recorder around one, or a Replay."""

    async def rollout(self, rollout_id: int, weight_version: int) -> Rollout: ...
    def state(self) -> SamplerState: ...
    def load_state(self, state: SamplerState) -> None: ...


class Recorder:
    """Keeps every rollout of `source`, and the state after it, before anybody trains on it."""

    def __init__(self, source: Rollouts, directory: Path) -> None:
        self._source = source
        self._directory = directory

    async def rollout(self, rollout_id: int, weight_version: int) -> Rollout:
        """A rollout of the source, which is on the disk now; one of an attempt before this one is replaced."""
        rollout = await self._source.rollout(rollout_id, weight_version)
        path = rollout_path(self._directory, rollout_id)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            remove_stale(path)
            # Not in a thread: cancelled between source and file, its prompts would be lost. Under a second for 100 MB.
            save_rollout(path, RecordedRollout(rollout, self._source.state()))
        except OSError as error:
            raise SamplerError(
                f"{path}: rollout {rollout_id} cannot be saved ({error.strerror}); make room, or set"
                " debug.save_rollouts: false"
            ) from error
        return rollout

    def state(self) -> SamplerState:
        """Of the source."""
        return self._source.state()

    def load_state(self, state: SamplerState) -> None:
        """Of the source."""
        self._source.load_state(state)


class Replay:
    """Gives what a Recorder kept, in any order; needs no engine, and takes no prompt from the data."""

    def __init__(self, directory: Path, config: RolloutConfig) -> None:
        self._directory = directory
        self._config = config
        self._state: SamplerState | None = None

    async def rollout(self, rollout_id: int, weight_version: int) -> Rollout:
        """The recorded rollout, whatever weights it was sampled with.

        Raises SamplerError where it was not recorded, cannot be read, or has other numbers of groups and samples than
        this configuration.
        """
        path = rollout_path(self._directory, rollout_id)
        recorded = load_rollout(path)
        self._check(path, rollout_id, recorded.rollout)
        if (found := recorded.rollout.report.weight_version) != weight_version:
            logger.warning("%s: was sampled with weights %d, and is replayed with %d", path, found, weight_version)
        self._state = recorded.state
        return recorded.rollout

    def state(self) -> SamplerState:
        """What the sampler of the recorded run remembered after the rollout replayed last.

        Raises SamplerError before the first one.
        """
        if self._state is None:
            raise SamplerError(f"{self._directory}: no rollout of it has been replayed yet, so there is no state")
        return self._state

    def load_state(self, state: SamplerState) -> None:
        """Take the state of a commit; the next rollout brings its own."""
        self._state = state

    def _check(self, path: Path, rollout_id: int, rollout: Rollout) -> None:
        if rollout.report.rollout_id != rollout_id:
            raise SamplerError(f"{path}: holds rollout {rollout.report.rollout_id}; it was renamed or copied")
        config = self._config
        what = f"{path}: does not fit this configuration:"
        if len(rollout.groups) != config.rollout_batch_size:
            raise SamplerError(
                f"{what} it has {len(rollout.groups)} groups, and rollout.rollout_batch_size is"
                f" {config.rollout_batch_size}; set that to {len(rollout.groups)}, or replay other rollouts"
            )
        if other := _other_sizes(rollout, config.n_samples_per_prompt):
            raise SamplerError(
                f"{what} it has groups of {other[0]} samples, and rollout.n_samples_per_prompt is"
                f" {config.n_samples_per_prompt}; set that to {other[0]}, or replay other rollouts"
            )


def _other_sizes(rollout: Rollout, expected: int) -> Sequence[int]:
    return sorted({len(group.samples) for group in rollout.groups} - {expected})
