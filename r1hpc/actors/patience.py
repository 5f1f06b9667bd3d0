"""How long is waited for what of the trainers and engines."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """Deadlines in seconds: past them something hangs. None is an estimate; R1 on 128 GPUs needs a fraction of each."""

    load_s: float = 3600.0
    """To read 1.3 TB of weights, or 9.4 TB of a checkpoint, from a file system that others use too."""
    update_s: float = 4 * 3600.0
    """R1: some minutes; a batch of long responses on few GPUs may take an hour."""
    begin_save_s: float = 600.0
    """To agree on the plan of a save and open its files."""
    finish_save_s: float = 1800.0
    """More than the ranks themselves give each other, whose error says more."""
    sleep_s: float = 300.0
    """Also to wake: tens of GB a GPU over its host link."""
    look_s: float = 120.0
    """To answer a question; between two calls a rank has nothing else to do."""
    collective_s: float = 2400.0
    """In a collective of torch.distributed: more than the longest wait that is none for a dead rank, a save's."""
