"""Saving while the rank does something else: a thread streams what the rank owns out of host memory.

Weights' host copies, masters and moments do not change between two optimizer steps, so there is no second copy of
anything; `finish` has to come before the next step.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from r1hpc.checkpoint.collective import as_error, on_first_rank, raise_together
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.space import require_space
from r1hpc.errors import CheckpointError, R1hpcError
from r1hpc.train.checkpoint.box_files import FILE_BYTES, BoxFiles
from r1hpc.train.checkpoint.complete import RankRecord, complete
from r1hpc.train.checkpoint.plan import SavePlan
from r1hpc.train.checkpoint.random_states import RandomStates, random_states
from r1hpc.train.checkpoint.ranks import current_layout
from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
from r1hpc.train.checkpoint.staging_directory import make_staging, remove_staging
from r1hpc.train.checkpoint.trainer_state import TrainerState

STOP_S = 10.0
"""For the writer to end at the next box."""
FINISH_DEADLINE_S = 1500.0
"""R1's 9.4 TB take 470 s at 20 GB/s, most of it while the next rollout is generated."""


def begin_save(
    directory: Path,
    plan: SavePlan,
    weights: Mapping[str, Tensor],
    state: TrainerState,
    say: Callable[[str], None],
    file_bytes: int = FILE_BYTES,
) -> PendingSave:
    """Begin to write a checkpoint that will be `directory`, and return. Collective.

    weights: the host copies of parameters and buffers, by name; they, and the optimizer's shards, must not change
    until `finish`. state: its layout is filled in. say: takes a line of this rank's progress now and then, in another
    thread.
    Raises CheckpointError on every rank, before anything is written, where the directory is not empty, cannot be made,
    or the file system has no room.
    """

    def prepare() -> Path:
        staging = make_staging(directory)
        try:
            require_space(staging.parent, plan.total_bytes, f"the checkpoint of iteration {state.iteration}")
        except R1hpcError:
            remove_staging(staging)
            raise
        return staging

    staging = on_first_rank(prepare, f"{directory}: a save cannot begin", plan.group)
    complete_state = replace(state, layout=current_layout())
    pending = PendingSave(directory, staging, plan, complete_state, random_states(), file_bytes)
    pending.start(weights, say)
    return pending


class PendingSave:
    """A checkpoint that is being written. Made by `begin_save` on every rank; ends with `finish` or `abandon`."""

    def __init__(
        self,
        directory: Path,
        staging: Path,
        plan: SavePlan,
        state: TrainerState,
        states: RandomStates,
        file_bytes: int,
    ) -> None:
        self.directory = directory
        self.state = state
        self._staging = staging
        self._plan = plan
        self._states = states
        self._files = BoxFiles(staging, plan.rank, file_bytes)
        self._stop = threading.Event()
        self._failure: R1hpcError | None = None
        self._thread: threading.Thread | None = None
        self._seconds = 0.0
        """That the writing took."""

    def start(self, weights: Mapping[str, Tensor], say: Callable[[str], None]) -> None:
        """Begin to write; once."""
        assert self._thread is None, f"{self.directory}: is being saved already"
        # A daemon: a rank that is told to leave must not stay for the rest of a checkpoint.
        self._thread = threading.Thread(
            target=self._run, args=(dict(weights), say), name=f"save of iteration {self.state.iteration}", daemon=True
        )
        self._thread.start()

    @property
    def written(self) -> bool:
        """Whether this rank has nothing left to write, or has failed: `finish` waits for other ranks only."""
        return self._thread is not None and not self._thread.is_alive()

    def finish(self, deadline_s: float = FINISH_DEADLINE_S) -> SavedCheckpoint:
        """Wait until every rank has written its part, then publish the directory. Collective.

        deadline_s: for this rank to write what it has not yet written; the group's own timeout must be longer.
        Raises CheckpointProblems, the same on every rank, if any rank failed; then nothing is left of the save.
        """
        assert self._thread is not None, f"{self.directory}: was not begun"
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            self._stop.set()
            # A write that is stuck in the kernel cannot be ended; the thread is a daemon and what it writes is removed.
            self._thread.join(STOP_S)
            self._failure = CheckpointError(
                f"rank {self._plan.rank} has not written its part of {self.directory.name} after {deadline_s:.0f} s of"
                " waiting: the file system is too slow, or stuck"
            )
        try:
            raise_together([self._failure], self._plan.group)
            ranks = self._gather()
            return on_first_rank(
                lambda: complete(self._staging, self.directory, self._plan, ranks, self.state),
                f"{self.directory}: cannot be published",
                self._plan.group,
            )
        except R1hpcError:
            self._remove()
            if self._plan.rank == 0:
                # Nobody writes any more: the threads of all ranks ended before any rank heard of a failure.
                with contextlib.suppress(OSError):
                    remove_staging(self._staging)
            raise

    def abandon(self) -> None:
        """Stop writing and remove what this rank wrote. Not collective: the last rank to do so leaves nothing."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._remove()

    def _run(self, weights: Mapping[str, Tensor], say: Callable[[str], None]) -> None:
        began = time.monotonic()
        try:
            total = sum(item.flat.nbytes for item in self._plan.items(weights))
            progress = Progress(f"saving iteration {self.state.iteration}, rank {self._plan.rank}", total, say)
            done = 0
            for written in self._files.write(self._plan.items(weights)):
                done += written
                progress.update(done)
                if self._stop.is_set():
                    return
            progress.finish()
        except Exception as error:  # whatever it is, every rank has to hear of it in `finish`
            self._failure = as_error(error, f"rank {self._plan.rank} cannot write its part of {self.directory.name}")
        finally:
            self._seconds = time.monotonic() - began

    def _gather(self) -> list[RankRecord]:
        """What every rank wrote, on rank 0; [] elsewhere."""
        mine = RankRecord(tuple(self._files.written), self._states, self._seconds)
        group = self._plan.group
        if not dist.is_initialized():
            return [mine]
        if self._plan.rank != 0:
            dist.gather_object(mine, None, dst=0, group=group)
            return []
        ranks = [mine] * dist.get_world_size(group)
        dist.gather_object(mine, ranks, dst=0, group=group)
        return ranks

    def _remove(self) -> None:
        """Remove what this rank wrote, and the staging directory once nothing is left in it."""
        # Other ranks' files are in it still; or what is left goes with the next save of this directory.
        with contextlib.suppress(OSError):
            self._files.remove()
            self._staging.rmdir()
