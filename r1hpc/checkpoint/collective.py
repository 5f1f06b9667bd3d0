"""Failing together: a rank that raises alone leaves the others waiting for it until a timeout hides the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from r1hpc.errors import CheckpointError, CheckpointProblems, ProblemsError, R1hpcError

T = TypeVar("T")

MAX_PROBLEMS = 20
"""Shown of a checkpoint."""


def everyones(mine: T, group: ProcessGroup | None = None) -> list[T]:
    """`mine` of every rank, in their order. Collective over `group`; null: all ranks."""
    if not dist.is_initialized():
        return [mine]
    ranks = [mine] * dist.get_world_size(group)
    dist.all_gather_object(ranks, mine, group=group)
    return ranks


def first_ranks(mine: T, group: ProcessGroup | None = None) -> T:
    """`mine` of rank 0 on every rank. Collective."""
    if not dist.is_initialized():
        return mine
    box = [mine]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def on_first_rank(work: Callable[[], T], doing: str, group: ProcessGroup | None = None) -> T:
    """What `work` returns on rank 0, where alone it is called; what it raises there is raised everywhere. Collective.

    doing: what fails, in words, where it is nothing that names itself.
    """
    answer: T | None = None
    failure: R1hpcError | None = None
    if rank_of(group) == 0:
        try:
            answer = work()
        except Exception as error:  # whatever it is, the others wait for this rank
            failure = as_error(error, doing)
    answer, failure = first_ranks((answer, failure), group)
    if failure is not None:
        raise failure
    return answer  # type: ignore[return-value]  # work returned it


def raise_together(failures: Sequence[R1hpcError | None], group: ProcessGroup | None = None) -> None:
    """Raise CheckpointProblems with the failures of all ranks, each said once, if there are any. Collective."""
    found = [failure for failure in failures if failure is not None]
    problems = list(dict.fromkeys(line for rank in everyones(found, group) for error in rank for line in _lines(error)))
    if problems:
        shown, rest = problems[:MAX_PROBLEMS], len(problems[MAX_PROBLEMS:])
        raise CheckpointProblems(shown + ([f"and {rest} more"] if rest else []))


def rank_of(group: ProcessGroup | None = None) -> int:
    """This process in `group`; 0 where there is no process group at all."""
    return dist.get_rank(group) if dist.is_initialized() else 0


def as_error(error: Exception, doing: str) -> R1hpcError:
    """An error for people, whatever was raised; it travels between ranks."""
    if isinstance(error, R1hpcError):
        return error
    if isinstance(error, OSError):
        return CheckpointError(f"{error.filename or doing}: {doing}: {error.strerror or error}")
    return CheckpointError(f"{doing}: {type(error).__name__}: {error}")


def _lines(error: R1hpcError) -> list[str]:
    return error.problems if isinstance(error, ProblemsError) else [str(error)]
