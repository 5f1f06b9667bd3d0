"""Samples to a micro-batch: packed, padded, aligned with the logits, and cut for a context-parallel rank.

Everything is laid out for whole sequences first and cut last, so that what a token is to predict is right where the
next token lies on another rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from r1hpc.model.packed import local_indices, pack_sequences
from r1hpc.train.microbatch import MicroBatch
from r1hpc.types import Sample

Array = NDArray[Any]


def collate(
    samples: Sequence[Sample],
    places: Sequence[int],
    *,
    cp_rank: int,
    cp_size: int,
    multiple: int,
    device: torch.device | str,
    chunk: int = 1,
) -> MicroBatch:
    """The share of a context rank of the micro-batch of samples[place] for each of `places`.

    samples: all of the rollout, checked (`samples.check_samples`). multiple: of what T must be one, for sequence
    parallelism the tensor ranks or a multiple of them; the least padding that gives it is one more sequence.
    chunk: of what the chunks of every sequence must be multiples, so that fewer lengths occur.
    """
    taken = [samples[place] for place in places]
    lengths = padded_lengths(taken, cp_size, multiple, chunk)
    share = local_indices(lengths, cp_rank, cp_size).numpy()
    arrays = {name: whole[share] for name, whole in _whole_sequences(taken, lengths).items()}
    arrays["rows"] = numpy.flatnonzero(arrays["loss_mask"])
    arrays["mask_sums"] = numpy.asarray([*map(_trained_tokens, taken), 1], dtype=numpy.float32)
    tensors = _to_device(arrays, torch.device(device))
    return MicroBatch(
        samples=tuple(places),
        tokens=tensors["tokens"],
        sequences=pack_sequences(lengths, cp_rank, cp_size, device),
        targets=tensors["targets"],
        loss_mask=tensors["loss_mask"],
        rows=tensors["rows"],
        response_mask=tensors["response_mask"],
        sample_of=tensors["sample_of"],
        mask_sums=tensors["mask_sums"],
        rollout_logprobs=tensors.get("rollout_logprobs"),
    )


def padded_lengths(samples: Sequence[Sample], cp_size: int, multiple: int = 1, chunk: int = 1) -> list[int]:
    """Of the sequences of a micro-batch, the last of them padding where the sum needs it.

    Each can be cut into 2 * cp_size chunks (one at cp_size 1) of a multiple of `chunk` tokens, and a rank's share of
    all is a multiple of `multiple`. For example at cp_size 2 and multiple 8, samples of 5 and 9 tokens: 8, 12, and 12
    of padding, for (8 + 12 + 12) / 2 = 2 * 8.
    """
    chunks_of_rank = 2 if cp_size > 1 else 1
    step = chunks_of_rank * cp_size * chunk
    lengths = [-(-len(sample.tokens) // step) * step for sample in samples]
    # A share is whole chunks of each sequence, and so must that of the padding be.
    padding = -(sum(lengths) // cp_size) % lcm(multiple, chunks_of_rank * chunk)
    return [*lengths, padding * cp_size] if padding else lengths


def gather_responses(
    shares: Sequence[Tensor], samples: Sequence[Sample], places: Sequence[int], chunk: int = 1
) -> list[Array]:
    """[R] for each sample of a micro-batch: values of its response tokens, out of the [T] of every context rank.

    shares: by context rank, aligned with the logits as a MicroBatch is: the value of token t stands at logit t - 1.
    chunk: as the micro-batch was made with.
    """
    taken = [samples[place] for place in places]
    lengths = padded_lengths(taken, len(shares), chunk=chunk)
    whole = torch.empty(sum(lengths), dtype=shares[0].dtype)
    for cp_rank, share in enumerate(shares):
        indices = local_indices(lengths, cp_rank, len(shares))
        whole[indices] = share[: len(indices)].detach().cpu()
    values = whole.numpy()
    responses, begin = [], 0
    for sample, length in zip(taken, lengths, strict=True):
        responses.append(values[begin:][_response_logits(sample)].copy())
        begin += length
    return responses


def _whole_sequences(samples: Sequence[Sample], lengths: Sequence[int]) -> dict[str, Array]:
    """The fields of MicroBatch that go with tokens, for whole sequences one after another."""
    total = sum(lengths)
    arrays: dict[str, Array] = {
        "tokens": numpy.zeros(total, dtype=numpy.int64),
        "targets": numpy.zeros(total, dtype=numpy.int64),
        "sample_of": numpy.full(total, len(samples), dtype=numpy.int64),
        "loss_mask": numpy.zeros(total, dtype=numpy.bool_),
        "response_mask": numpy.zeros(total, dtype=numpy.bool_),
    }
    if samples and samples[0].rollout_logprobs is not None:
        arrays["rollout_logprobs"] = numpy.zeros(total, dtype=numpy.float32)
    begin = 0
    # Without the sequence of padding, which is as the arrays begin.
    for number, (sample, length) in enumerate(zip(samples, lengths, strict=False)):
        own = {name: whole[begin : begin + len(sample.tokens)] for name, whole in arrays.items()}
        own["tokens"][:] = sample.tokens
        own["targets"][:-1] = sample.tokens[1:]
        own["sample_of"][:] = number
        response = _response_logits(sample)
        own["response_mask"][response] = True
        own["loss_mask"][response] = True if sample.loss_mask is None else sample.loss_mask
        if sample.rollout_logprobs is not None:
            own["rollout_logprobs"][response] = sample.rollout_logprobs
        begin += length
    return arrays


def _response_logits(sample: Sample) -> slice:
    """The logits of a sample that are about its response: from the last of the prompt to the last but one."""
    last = len(sample.tokens) - 1
    return slice(last - sample.response_len, last)


def _trained_tokens(sample: Sample) -> int:
    return sample.response_len if sample.loss_mask is None else int(sample.loss_mask.sum())


def _to_device(arrays: dict[str, Array], device: torch.device) -> dict[str, Tensor]:
    """All arrays in one copy, which a GPU takes from pinned memory without holding up the host."""
    # The widest numbers first, so that each array begins at a multiple of its own.
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    size_bytes = sum(array.nbytes for array in arrays.values())
    host = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    begins, end = {}, 0
    for name in names:
        begins[name], end = end, end + arrays[name].nbytes
        host[begins[name] : end] = torch.from_numpy(arrays[name]).view(torch.uint8)
    there = host.to(device, non_blocking=True)
    return {
        name: there[begin : begin + arrays[name].nbytes].view(torch.from_numpy(arrays[name]).dtype)
        for name, begin in begins.items()
    }
