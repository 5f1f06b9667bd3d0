"""IterationRecord: one iteration in numbers, and the flat JSON object that it is in metrics.jsonl.

A key is `section/name`; sections that an iteration did not have (no training with debug.rollout_only) are left out.
docs/operations.md explains each key by the docstrings of this file. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Number = int | float
Line = Mapping[str, Any]
"""A line of metrics.jsonl as it is read: that of another version may have other keys."""

NOT_FINITE = "not_finite"
"""Key of {key: "nan" | "inf" | "-inf"}: JSON has no such numbers, they are null under their own keys."""


@dataclass(frozen=True)
class RolloutNumbers:
    """`rollout/`: what was sampled."""

    weight_version: int
    """Of the weights that sampled: the number of iterations trained before."""
    reward: float
    """Mean over the samples that are trained on. A filter moves it towards the middle."""
    reward_finished: float
    """Mean over all samples that were graded, kept or not: what the policy scores."""
    response_len_mean: float
    """Tokens, of the samples that are trained on."""
    response_len_max: int
    """Tokens, of the samples that are trained on."""
    truncated: float
    """Share of them that ran into the length limit."""
    generated_tokens: int
    """By the engines in this rollout."""
    kept_tokens: int
    """Of the responses that are trained on."""
    stale_tokens: int
    """Of these, by weights of another version."""
    wasted_tokens: int
    """Of responses that were thrown away."""
    wasted: float
    """wasted_tokens / generated_tokens. Above 1 where tokens of an earlier rollout were thrown away as well."""
    queued: int
    """Prompts that wait for the next rollout."""


@dataclass(frozen=True)
class GroupNumbers:
    """`groups/`: what became of the prompts; submitted = kept + rejected + failed + surplus + aborted."""

    waves: int
    """Of over_sampling_batch_size prompts each."""
    submitted: int
    """Prompts."""
    kept: int
    """Trained on."""
    rejected: int
    """By the filter."""
    failed: int
    """An engine gave up on them."""
    surplus: int
    """Finished, but not needed."""
    aborted: int
    """Not finished when enough were kept."""
    recycled: int
    """Of failed, surplus and aborted: queued again."""
    given_up: int
    """Of these: thrown away too often to be queued again, or refused by an engine."""
    dropped: int
    """Of these: forgotten, with `recycle: none`."""


@dataclass(frozen=True)
class TrainNumbers:
    """`train/`: the update. Where it had several optimizer steps, their mean unless it says otherwise."""

    optimizer_step: int
    """Optimizer steps that the run has done with it."""
    learning_rate: float
    """Of the last step."""
    grad_norm: float
    """Before clipping."""
    grad_norm_max: float
    """The largest of its steps."""
    tokens: int
    """Prompts and responses, of all steps together."""


@dataclass(frozen=True)
class EvalNumbers:
    """`eval/SET/`: a held-out set, with the weights that sampled this iteration's rollout; `final_eval/SET/`: with
    those after the last iteration, in its line."""

    weight_version: int
    """Of the weights that answered."""
    reward: float
    """Mean over the samples of all prompts that were answered."""
    pass_at: Mapping[int, float]
    """`eval/SET/pass@K`: share of the prompts that K samples solve; `pass@1` is the accuracy."""
    truncated: float
    """Share of the samples that ran into the length limit."""
    response_len_mean: float
    """Tokens."""
    response_len_max: int
    """Tokens."""
    prompts: int
    """Of the set."""
    failed: int
    """Of these: an engine gave up on them; they count in no other number."""
    seconds: float
    """For the set."""


@dataclass(frozen=True)
class IterationRecord:
    """One iteration: a rollout and the update with it."""

    iteration: int
    """From 0: the id of its rollout."""
    attempt: str
    """Directory under attempts/ of the attempt that did it."""
    finished: float
    """Unix time of its end."""
    gpus: int
    """That the job held."""
    committed: int | None = None
    """Iteration of the newest commit then; null before the first."""
    saving: int | None = None
    """Iteration whose commit was being written then; null: none."""
    rollout: RolloutNumbers | None = None
    groups: GroupNumbers | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)
    """`rejected/REASON`: groups, by the reason that the filter gave."""
    graded: Mapping[str, int] = field(default_factory=dict)
    """`graded/OUTCOME`: gradings, by how they ended: graded, timeout, memory, error, ..."""
    train: TrainNumbers | None = None
    loss: Mapping[str, float] = field(default_factory=dict)
    """`loss/NAME`: what the loss reports: see the table below."""
    evals: Mapping[str, EvalNumbers] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    """`seconds/PART`: `seconds/iteration` is all of it; `seconds/update/PART` is that of the update, of whose steps
    `seconds/update/steps/optimizer` is a part; `seconds/commit` is what a commit took that became valid then: it is
    written beside the rollout."""
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)
    """`tokens_per_s/PHASE`: see the table below."""
    sync: Mapping[str, Number] = field(default_factory=dict)
    """`sync/NAME`: the way of the weights into the engines: seconds, bytes, buckets, engines that failed."""
    memory: Mapping[str, Number] = field(default_factory=dict)
    """`memory/NAME`: the worst of all ranks, bytes."""

    def to_json(self) -> dict[str, Any]:
        """The flat form. Numbers that are not finite are null, and named under NOT_FINITE."""
        return plain(self._items())

    @property
    def gpu_hours(self) -> float:
        """Held for this iteration."""
        return self.gpus * self.seconds.get("iteration", 0.0) / 3600

    def _items(self) -> Iterator[tuple[str, Any]]:
        for name in ("iteration", "attempt", "finished", "gpus", "committed", "saving"):
            yield name, getattr(self, name)
        yield "gpu_hours", self.gpu_hours
        for prefix, section in (("rollout", self.rollout), ("groups", self.groups), ("train", self.train)):
            if section is not None:
                yield from _section(prefix, section)
        for prefix in ("rejected", "graded", "loss", "seconds", "tokens_per_s", "sync", "memory"):
            for name, value in getattr(self, prefix).items():
                yield f"{prefix}/{name}", value
        yield from evaluation_items("eval", self.evals)


def plain(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Of keys and values what JSON can say."""
    flat = dict(items)
    strange = {key: repr(value) for key, value in flat.items() if _is_strange(value)}
    flat |= dict.fromkeys(strange)
    return flat | ({NOT_FINITE: strange} if strange else {})


def evaluation_items(prefix: str, evals: Mapping[str, EvalNumbers]) -> Iterator[tuple[str, Any]]:
    """The numbers of every set under their keys."""
    for name, numbers in evals.items():
        yield from _section(f"{prefix}/{name}", numbers)


def _section(prefix: str, section: Any) -> Iterator[tuple[str, Any]]:
    for each in fields(section):
        value = getattr(section, each.name)
        if each.name == "pass_at":
            yield from ((f"{prefix}/pass@{k}", share) for k, share in value.items())
        else:
            yield f"{prefix}/{each.name}", value


def _is_strange(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
