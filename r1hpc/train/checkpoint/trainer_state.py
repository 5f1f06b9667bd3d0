"""What a trainer's checkpoint says of itself beside its tensors: a small JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.records import read_object
from r1hpc.errors import CheckpointError

TRAINER = "trainer.json"
RANDOM_STATES = "random_states.pt"
FORMAT = 1


@dataclass(frozen=True)
class TrainerState:
    """Where training stands."""

    iteration: int
    """Of the rollout that was trained last; the next has this plus one."""
    optimizer_steps: int
    """Taken since the start of the run."""
    schedule: Mapping[str, Any]
    """State of the learning-rate schedule, as JSON."""
    config_digest: str
    """Of the configuration, to tell when it was changed."""
    layout: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the parallel groups that saved it."""


def to_json(state: TrainerState) -> dict[str, Any]:
    """The content of TRAINER."""
    return {"format": FORMAT, **asdict(state)}


def read_trainer_state(directory: Path) -> TrainerState:
    """The state in `directory`. Raises CheckpointError when there is none, or it is none that this version wrote."""
    file = directory / TRAINER
    value = read_object(file)
    if value is None:
        raise CheckpointError(
            f"{directory}: has no {TRAINER}: it holds weights, perhaps, but nothing to resume from; name it as ref_load"
        )
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{file}: has format {value.get('format')!r}; this version reads format {FORMAT}")
    kinds = {"iteration": int, "optimizer_steps": int, "schedule": dict, "config_digest": str, "layout": dict}
    for name, kind in kinds.items():
        if type(value.get(name)) is not kind:
            raise CheckpointError(f"{file}: {name} is {value.get(name)!r:.40}; it must be of type {kind.__name__}")
    return TrainerState(**{name: value[name] for name in kinds})
