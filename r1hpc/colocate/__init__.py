"""Trainers and engines on the same GPUs, in turns. Nothing else knows that they are shared."""

from __future__ import annotations

from r1hpc.colocate.colocation import Colocation, Entering
from r1hpc.colocate.needs import WakingNeeds

__all__ = ["Colocation", "Entering", "WakingNeeds"]
