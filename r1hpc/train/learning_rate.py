"""The learning rate as a pure function of the optimizer steps done, and where a run stands on it.

The same values as Megatron's scheduler, counted in optimizer steps and not in samples: a batch size that changes on
resume does not move the run to another place of the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from r1hpc.config.training import OptimizerConfig
from r1hpc.errors import R1hpcError

Style = Literal["constant", "linear", "cosine"]


class ScheduleError(R1hpcError):
    """A learning rate schedule that is none, or a run that does not stand where its schedule does."""


@dataclass(frozen=True)
class Schedule:
    """A warm-up from 0 to the peak, then constant, or a decay that ends at the minimum."""

    peak: float
    minimum: float
    style: Style
    warmup_steps: int
    total_steps: int
    """Optimizer steps of the whole run: the decay ends there."""

    def __post_init__(self) -> None:
        if self.style not in get_args(Style):
            raise ScheduleError(f'style "{self.style}" of the learning rate is none of {", ".join(get_args(Style))}')
        if not 0 <= self.minimum <= self.peak:
            raise ScheduleError(
                f"learning rates must be 0 <= min_lr <= lr, but min_lr is {self.minimum}, lr {self.peak}"
            )
        if self.style != "constant" and not 0 <= self.warmup_steps < self.total_steps:
            raise ScheduleError(
                f"a {self.style} decay needs steps after the warm-up, but of {self.total_steps} optimizer steps"
                f" {self.warmup_steps} are warm-up; lower lr_warmup_iters or raise the number of rollouts"
            )

    @classmethod
    def of(cls, config: OptimizerConfig, total_steps: int) -> Schedule:
        """What the configuration asks for, over a run of so many optimizer steps."""
        return cls(
            peak=config.lr,
            minimum=config.min_lr,
            style=config.lr_decay_style,
            warmup_steps=config.lr_warmup_iters,
            total_steps=total_steps,
        )

    def at(self, step: int) -> float:
        """The learning rate of the step that comes after `step` steps: at(0) is the first one's."""
        if self.warmup_steps and step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.style == "constant":
            return self.peak
        if step > self.total_steps:
            return self.minimum
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        share = 1.0 - done if self.style == "linear" else 0.5 * (math.cos(math.pi * done) + 1.0)
        return self.minimum + share * (self.peak - self.minimum)


class LearningRate:
    """A schedule and the steps done on it, which is saved and loaded with them: the checkpoint has the say."""

    def __init__(self, schedule: Schedule, step: int = 0) -> None:
        self.schedule = schedule
        self.step = step
        """Optimizer steps done."""

    @property
    def value(self) -> float:
        """Of the next step."""
        return self.schedule.at(self.step)

    def advance(self, optimizer_steps: int) -> None:
        """One step was done. Raises ScheduleError unless the optimizer has now done as many as were counted here."""
        if optimizer_steps != self.step + 1:
            raise ScheduleError(
                f"the optimizer has done {optimizer_steps} steps, the learning rate's schedule {self.step} + 1 ="
                f" {self.step + 1}: they were not saved or loaded together"
            )
        self.step += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint; plain values."""
        return {"step": self.step, **asdict(self.schedule)}

    @classmethod
    def resumed(cls, state: Mapping[str, Any], configured: Schedule) -> tuple[LearningRate, list[str]]:
        """As a checkpoint says, whatever the configuration says; a line of notice for each value that differs there.

        Raises ScheduleError for a state that lacks a value or has one too many.
        """
        names = {field.name for field in fields(Schedule)}
        if set(state) != names | {"step"}:
            raise ScheduleError(
                f"the state of the learning rate has {', '.join(sorted(state)) or 'nothing'}; it must have"
                f" {', '.join(sorted(names | {'step'}))}"
            )
        saved = Schedule(**{name: state[name] for name in names})
        notices = [
            f"learning rate: {name} is {_shown(saved, name)} as in the checkpoint, not {_shown(configured, name)} as"
            " configured"
            for name in sorted(names)
            if getattr(saved, name) != getattr(configured, name)
        ]
        return cls(saved, int(state["step"])), notices


def _shown(schedule: Schedule, name: str) -> str:
    return str(getattr(schedule, name))
