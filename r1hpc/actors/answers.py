"""What a rank answers when it fails. Its errors do not travel: the driver would have to import what raised them."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from r1hpc.errors import R1hpcError

logger = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

_COLLECTIVE_WORDS = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "timed out waiting")


@dataclass(frozen=True)
class Failure:
    """An error of one rank, as text."""

    kind: str
    """Name of its class."""
    message: str
    traceback: str
    is_for_people: bool
    """An R1hpcError: its message says everything."""
    is_consequence: bool
    """It comes from a collective that another rank left: the cause is that rank's."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The error that is being handled."""
        is_ours = isinstance(error, R1hpcError)
        return cls(
            kind=type(error).__name__,
            message=str(error),
            traceback=traceback.format_exc(),
            is_for_people=is_ours,
            is_consequence=not is_ours and _is_consequence(error),
        )

    @property
    def said(self) -> str:
        """In words."""
        return self.message if self.is_for_people else f"{self.kind}: {self.message}"


def answering(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | Failure]:
    """Let a method of an actor return what it raises, and log it where it happened."""

    @functools.wraps(method)
    def answer(self: S, *args: P.args, **kwargs: P.kwargs) -> R | Failure:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            logger.exception("%s failed", method.__name__)
            return Failure.of(error)

    return answer  # type: ignore[return-value]  # self by position, as every call of a method has it


def _is_consequence(error: Exception) -> bool:
    """Whether torch.distributed says that somebody else is gone; gloo's errors are plain RuntimeErrors."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _COLLECTIVE_WORDS)
