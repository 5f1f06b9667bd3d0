"""Refuses samples that cannot be trained on, all of them at once, before anything is computed from any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite

import numpy

from r1hpc.errors import ProblemsError
from r1hpc.types import Sample

ROUNDING = 1e-6
"""How far above 0 a float32 log-prob may be: an engine's softmax may round a certain token to a little over 1."""


_KINDS = {numpy.integer: "integers", numpy.floating: "floating-point numbers", numpy.bool_: "bool"}


class SamplesError(ProblemsError):
    """Every sample of a rollout that cannot be trained on, by its index."""

    heading = "sample problem"


def check_samples(samples: Sequence[Sample], *, vocab_size: int, at_least: int = 1) -> None:
    """Raise SamplesError naming every sample that is not as `Sample` says, or if there are fewer than `at_least`.

    A sample without a single trained token is none of them: partial rollouts have such, and they count in the mean over
    samples (`untrained_samples`).
    """
    problems = list(_of_all(samples, at_least))
    for sample in samples:
        problems += [f"sample {sample.index}: {problem}" for problem in _of_one(sample, vocab_size)]
    if problems:
        raise SamplesError(problems)


def untrained_samples(samples: Sequence[Sample]) -> tuple[int, ...]:
    """Indices of the samples whose loss mask leaves no token to train on."""
    return tuple(sample.index for sample in samples if sample.loss_mask is not None and not sample.loss_mask.any())


def _of_all(samples: Sequence[Sample], at_least: int) -> Iterator[str]:
    """What is wrong with them taken together."""
    if len(samples) < at_least:
        yield (
            f"{len(samples)} samples, but the optimizer steps of a rollout take {at_least}"
            " (rollout_batch_size * n_samples_per_prompt); generate the others first"
        )
    for index, times in Counter(sample.index for sample in samples).items():
        if times > 1:
            yield f"sample {index}: {times} samples have this index; it is the place in the rollout and must be unique"
    without = [sample.index for sample in samples if sample.rollout_logprobs is None]
    if 0 < len(without) < len(samples):
        yield (
            f"{len(without)} of {len(samples)} samples have no rollout_logprobs: {', '.join(map(str, without))};"
            " all must have them, or none: ask the engine for them with every request (return_logprob)"
        )


def _of_one(sample: Sample, vocab_size: int) -> Iterator[str]:
    """What is wrong with one."""
    wrong_kinds = list(_kinds(sample))
    yield from wrong_kinds
    if wrong_kinds:
        # What follows looks at their values.
        return
    yield from _tokens(sample, vocab_size)
    for name, array in (("rollout_logprobs", sample.rollout_logprobs), ("loss_mask", sample.loss_mask)):
        if array is not None and array.shape != (sample.response_len,):
            yield (
                f"{name} has shape {list(array.shape)}, but response_len is {sample.response_len};"
                " it holds one entry for each response token, none for the prompt"
            )
    yield from _logprobs(sample)
    if not isfinite(sample.reward):
        yield f"reward is {sample.reward}; it must be finite: see what the reward function returned"


def _kinds(sample: Sample) -> Iterator[str]:
    """Arrays of other numbers than `Sample` says: a mask of 2s would count twice, a token of 1.5 be rounded."""
    arrays = (
        ("tokens", sample.tokens, numpy.integer),
        ("rollout_logprobs", sample.rollout_logprobs, numpy.floating),
        ("loss_mask", sample.loss_mask, numpy.bool_),
    )
    for name, array, kind in arrays:
        if array is None:
            continue
        if not isinstance(array, numpy.ndarray):
            yield f"{name} is a {type(array).__name__}; it must be a numpy array of {_KINDS[kind]}"
        elif array.ndim != 1 or not numpy.issubdtype(array.dtype, kind):
            yield f"{name} has {array.ndim} dimensions of {array.dtype}; it must have 1, of {_KINDS[kind]}"


def _tokens(sample: Sample, vocab_size: int) -> Iterator[str]:
    length = len(sample.tokens)
    if not 1 <= sample.response_len < length:
        yield (
            f"response_len is {sample.response_len} of {length} tokens; at least one token is the prompt's and one the"
            " response's: drop the sample, or its group, before training"
        )
    wrong = numpy.flatnonzero((sample.tokens < 0) | (sample.tokens >= vocab_size))
    if wrong.size:
        first = wrong[0]
        yield (
            f"token {first} is {sample.tokens[first]}{_more(wrong.size)}; the vocabulary has ids 0 to {vocab_size - 1}:"
            " engine and trainer must have the same model and tokenizer"
        )


def _logprobs(sample: Sample) -> Iterator[str]:
    logprobs = sample.rollout_logprobs
    if logprobs is None:
        return
    # NaN compares false, so it is among the wrong ones.
    wrong = numpy.flatnonzero(~(numpy.isfinite(logprobs) & (logprobs <= ROUNDING)))
    if wrong.size:
        first = wrong[0]
        yield (
            f"rollout_logprobs of response token {first} is {logprobs[first]}{_more(wrong.size)}; a log-prob is finite"
            " and at most 0: see what the engine returned"
        )


def _more(count: int) -> str:
    """How many there are besides the one that is shown."""
    return f" (and {count - 1} more)" if count > 1 else ""
