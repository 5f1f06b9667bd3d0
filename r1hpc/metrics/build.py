"""An IterationRecord out of what the parts of a run report of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from r1hpc.metrics.record import (
    EvalNumbers,
    GroupNumbers,
    IterationRecord,
    Number,
    RolloutNumbers,
    TrainNumbers,
)

if TYPE_CHECKING:  # they load numpy and torch, which drawing curves does not need
    from r1hpc.rollout.evaluation import EvalResult
    from r1hpc.rollout.report import RolloutReport
    from r1hpc.train.update_stats import UpdateStats


@dataclass(frozen=True)
class Circumstances:
    """What an iteration happened in."""

    iteration: int
    attempt: str
    """Name of the attempt's directory."""
    finished: float
    """Unix time."""
    gpus: int
    seconds: Mapping[str, float]
    """By part that only the loop sees: "iteration", from the end of the one before (or the start of the loop) to its
    own, "sync", "save" (waiting for commits), the halves of phase switches; "commit", what a commit took that became
    valid meanwhile: it is written beside the rollout. Rollout, eval and update are known from their reports."""
    committed: int | None = None
    saving: int | None = None
    sync: Mapping[str, Number] = field(default_factory=dict)
    memory: Mapping[str, Number] = field(default_factory=dict)


def iteration_record(
    around: Circumstances,
    *,
    rollout: RolloutReport | None = None,
    update: UpdateStats | None = None,
    evals: Sequence[EvalResult] = (),
) -> IterationRecord:
    """The record of an iteration; what it did not have (an update with debug.rollout_only, say) is null."""
    return IterationRecord(
        iteration=around.iteration,
        attempt=around.attempt,
        finished=around.finished,
        gpus=around.gpus,
        committed=around.committed,
        saving=around.saving,
        rollout=None if rollout is None else _rollout(rollout),
        groups=None if rollout is None else _groups(rollout),
        rejected={} if rollout is None else dict(rollout.groups.rejected),
        graded={} if rollout is None else dict(rollout.reward_outcomes),
        train=None if update is None else _train(update),
        loss={} if update is None else loss_numbers(update),
        evals=eval_numbers(evals),
        seconds=_seconds(rollout, update, evals) | dict(around.seconds),
        tokens_per_s=_tokens_per_s(around, rollout, update),
        sync=around.sync,
        memory=around.memory,
    )


def eval_numbers(results: Iterable[EvalResult]) -> dict[str, EvalNumbers]:
    """By set."""
    return {
        result.name: EvalNumbers(
            weight_version=result.weight_version,
            reward=result.reward_mean,
            pass_at=dict(result.pass_at),
            truncated=result.truncated,
            response_len_mean=result.response_len_mean,
            response_len_max=result.response_len_max,
            prompts=result.num_prompts,
            failed=len(result.failed),
            seconds=result.seconds,
        )
        for result in results
    }


def loss_numbers(update: UpdateStats) -> dict[str, float]:
    """What the loss reported: the mean over the optimizer steps that did, of a name in `_max` the largest."""
    names = dict.fromkeys(name for step in update.steps for name in step.metrics)
    return {
        name: (max if name.endswith("_max") else _mean)(
            [step.metrics[name] for step in update.steps if name in step.metrics]
        )
        for name in names
    }


def _seconds(
    rollout: RolloutReport | None, update: UpdateStats | None, evals: Sequence[EvalResult]
) -> dict[str, float]:
    """By part, as the parts themselves say."""
    found = {"eval": sum(result.seconds for result in evals)} if evals else {}
    if rollout is not None:
        found |= {"rollout": rollout.timing.total, "rollout/stop": rollout.timing.stop}
    if update is not None:
        found["update"] = sum(update.seconds.values())
        found |= {f"update/{name}": value for name, value in update.seconds.items()}
        found["update/steps/optimizer"] = sum(step.optimizer_seconds for step in update.steps)
    return found


def _rollout(report: RolloutReport) -> RolloutNumbers:
    kept = report.kept
    return RolloutNumbers(
        weight_version=report.weight_version,
        reward=kept.reward_mean,
        reward_finished=report.reward_mean_finished,
        response_len_mean=kept.response_len_mean,
        response_len_max=kept.response_len_max,
        truncated=kept.truncated,
        generated_tokens=report.generated_tokens,
        kept_tokens=kept.tokens,
        stale_tokens=kept.stale_tokens,
        wasted_tokens=report.wasted_tokens,
        wasted=report.wasted_tokens / max(report.generated_tokens, 1),
        queued=report.queued,
    )


def _groups(report: RolloutReport) -> GroupNumbers:
    groups = report.groups
    return GroupNumbers(
        waves=groups.waves,
        submitted=groups.submitted,
        kept=groups.kept,
        rejected=sum(groups.rejected.values()),
        failed=groups.failed,
        surplus=groups.surplus,
        aborted=groups.aborted,
        recycled=groups.recycled,
        given_up=groups.given_up,
        dropped=groups.dropped,
    )


def _train(update: UpdateStats) -> TrainNumbers:
    norms = [step.grad_norm for step in update.steps]
    return TrainNumbers(
        optimizer_step=update.steps[-1].step,
        learning_rate=update.steps[-1].learning_rate,
        grad_norm=_mean(norms),
        grad_norm_max=max(norms),
        tokens=_tokens(update),
    )


def _tokens_per_s(around: Circumstances, rollout: RolloutReport | None, update: UpdateStats | None) -> dict[str, float]:
    found = {} if rollout is None else {"rollout": rollout.tokens_per_s}
    if update is None:
        return found
    tokens, wall_s = _tokens(update), around.seconds.get("iteration")
    parts = {"update": sum(update.seconds.values()), "iteration": wall_s}
    found["train"] = update.tokens_per_s
    return found | {name: tokens / seconds for name, seconds in parts.items() if seconds}


def _tokens(update: UpdateStats) -> int:
    return sum(step.num_tokens for step in update.steps)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
