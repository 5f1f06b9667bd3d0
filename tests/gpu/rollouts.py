"""A rollout of random prompts, and how far the trainer's log-probs of it are from the engine's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from r1hpc.config import Config
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.protocol import Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.train.actor import TrainActor
from r1hpc.train.schedule import collate_here
from r1hpc.types import Generation, Sample

SECRET = "key-of-this-test"
"""That the engine asks for."""
TOKENS = 64


@dataclass(frozen=True)
class Rollout:
    """What an engine generated."""

    samples: list[Sample]
    versions: list[int]
    """Of the weights, those that any response says."""
    reward: float
    """The mean."""


async def generate(url: str, config: Config, version: int) -> Rollout:
    """Responses to random prompts, drawn by `version`; one is the better the more small tokens it has."""
    shape = json.loads((Path(config.ckpt.hf_checkpoint) / "config.json").read_text(encoding="utf-8"))
    vocab, draw = int(shape["vocab_size"]), numpy.random.default_rng(version)
    per_prompt = config.rollout.n_samples_per_prompt
    prompts = [
        draw.integers(3, vocab, int(draw.integers(8, 32))).astype(numpy.int32)
        for _ in range(config.rollout.rollout_batch_size)
    ]
    params = SamplingParams(config.rollout.rollout_temperature, 1.0, -1, TOKENS)
    async with EngineClient(url, concurrency=config.sglang.server_concurrency, secret=SECRET) as client:
        requests = [
            (prompt, Request(prompt, params, f"{version}-{place}-{copy}"))
            for place, prompt in enumerate(prompts)
            for copy in range(per_prompt)
        ]
        responses = await asyncio.gather(*(client.generate(request) for _, request in requests))
    samples = [
        _sample(index, index // per_prompt, prompt, response, vocab)
        for index, ((prompt, _), response) in enumerate(zip(requests, responses, strict=True))
    ]
    versions = sorted({span.version for response in responses for span in response.versions})
    return Rollout(samples, versions, float(numpy.mean([sample.reward for sample in samples])))


def _sample(index: int, group: int, prompt: numpy.ndarray[Any, Any], response: Generation, vocab: int) -> Sample:
    return Sample(
        index=index,
        group_index=group,
        tokens=numpy.concatenate([prompt, response.tokens]),
        response_len=len(response.tokens),
        reward=float(numpy.mean(response.tokens < vocab // 2)),
        rollout_logprobs=response.logprobs,
        finish_reason=response.finish_reason,
    )


def logprobs(actor: TrainActor, samples: Sequence[Sample]) -> list[numpy.ndarray[Any, Any]]:
    """Of the responses, by the trainer; [] where it has not the last stage."""
    batches = [collate_here(samples, [place], actor.config) for place in range(len(samples))]
    return [found.float().cpu().numpy() for found in actor.passes.logprobs(batches)]


def gap(samples: Sequence[Sample], theirs: Sequence[numpy.ndarray[Any, Any]]) -> dict[str, float]:
    """Between the engine's log-probs and the trainer's; the first token of a response is no decoded one."""
    ours = [sample.rollout_logprobs for sample in samples]
    assert all(logs is not None and len(logs) == len(other) for logs, other in zip(ours, theirs, strict=True))
    one = numpy.concatenate([logs[1:] for logs in ours if logs is not None]).astype(numpy.float64)
    other = numpy.concatenate([logs[1:] for logs in theirs]).astype(numpy.float64)
    errors = numpy.abs(one - other)
    return {
        "tokens": float(len(errors)),
        "mean": float(errors.mean()),
        "p99": float(numpy.quantile(errors, 0.99)),
        "max": float(errors.max()),
        "correlation": float(numpy.corrcoef(one, other)[0, 1]),
    }
