"""Where a rank of the trainer runs, and where all of them meet. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Of one rank."""

    rank: int
    host: str
    gpu: int
    """Index among the GPUs that the job has on the host; a CPU's is logical."""
    machine_slots: int
    """Ranks on the machine, which is the host's alone but in a rehearsal."""
    log: Path
    """What the rank's process says."""

    def __str__(self) -> str:
        return f"rank {self.rank} at {self.host}"


@dataclass(frozen=True)
class Rendezvous:
    """A store on the head, at which the ranks find each other."""

    address: str
    """Of the head; the store listens there and nowhere else."""
    port: int
    world_size: int
    join_timeout_s: float
    """In which every rank must have come."""
    collective_timeout_s: float
    """After which a rank that waits for another in a collective gives up."""
