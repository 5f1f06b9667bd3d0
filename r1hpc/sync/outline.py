"""What the driver and the trainers tell each other about one sync. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from r1hpc.errors import ProblemsError, R1hpcError


class SyncError(R1hpcError):
    """Weights that cannot be sent."""


class SyncTimeoutError(SyncError):
    """A sync that was not over in time; nobody knows which engine it waited for."""


class SyncProblems(ProblemsError):
    """Everything that keeps the trainers' weights from being the model's, each exactly once."""

    heading = "problem of the weights to send"


TURNS = 2
"""Payloads that exist at once: one is filled while the engine takes the other."""


@dataclass(frozen=True)
class SyncTarget:
    """One engine that is to be given the weights."""

    name: str
    ranks: tuple[int, ...]
    """The trainer rank beside each of its tensor-parallel ranks, in their order: the couriers."""
    ep_size: int = 1
    """Runs of experts that lie on its ranks in order; 1: every rank gets all. See routes.routed_ep_size."""


@dataclass(frozen=True)
class SyncOutline:
    """What one sync will do; the same on every rank."""

    buckets: int
    """Payloads that each engine gets, one after another: 0, 1, ... All must be taken, or the weights are not whole."""
    bytes_per_gpu: int
    """Of weights and scales, into the GPU that gets most."""
    bucket_bytes: int
    """The largest payload of a GPU."""
    samples: tuple[str, ...]
    """Tensors that are read back out of the engines and compared with what the trainers hold."""


@dataclass(frozen=True)
class SyncOutcome:
    """How one rank's part of a sync ended."""

    faults: tuple[str, ...] = ()
    """What the engine's rank beside it reported, or did not report; empty where it has all weights, or none was meant
    for it."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Spent by this rank: "gather", "quantize", "deliver", "checksum"; by the engine's rank beside it: "engine_open",
    "engine_checksum", "engine_forget", "engine_load", "engine_compare"."""
