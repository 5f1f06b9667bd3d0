"""What a side takes of every GPU at once when it wakes, by the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.plan import Plan

_TRAINER = ("weights", "gradients")
_ENGINE = ("engine weights", "KV cache", "CUDA graphs")


@dataclass(frozen=True)
class WakingNeeds:
    """Bytes by rank. Only what is given back in sleep and taken again as one: activations come and go by themselves."""

    trainers: tuple[int, ...]
    engines: tuple[int, ...]

    @classmethod
    def of(cls, plan: Plan) -> WakingNeeds:
        """Of a run; ranks of one stage need the same."""
        stages = [rank // plan.topology.stage_size for rank in range(plan.world_size)]
        train, rollout = plan.phase("train").stages, plan.phase("rollout").stages
        return cls(
            trainers=tuple(_bytes(train[stage], _TRAINER) for stage in stages),
            engines=tuple(_bytes(rollout[stage], _ENGINE) for stage in stages),
        )


def _bytes(use: MemoryUse, names: Sequence[str]) -> int:
    return sum(part.bytes for part in use.parts if part.name in names)
