"""What the engine says of its samples, and what the trainer says of them: the same log-probs from the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import numpy
import pytest
import torch
from torch import Tensor

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.rollout.guard import authorization
from r1hpc.train.actor import TrainActor
from r1hpc.train.schedule import collate_here
from r1hpc.types import Sample
from tests.rollout.conftest import ENGINE_KEY
from tests.train.parity.run import Case, Grid, Models, on_every_rank

PROMPTS = [[1, 5, 6, 7, 8], [1, *range(40, 61)], [1, 9]]
TOKENS = 48
CLOSE = 1e-4


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The engine's checkpoint, converted for the trainer."""
    source = open_checkpoint(tiny_checkpoint)
    made = tmp_path_factory.mktemp("trained") / "torch_dist"
    slices = make_slices(source.shape.num_layers, 1, None, None, 1, "layout")
    convert_all(plan_conversion(source, made, slices, 1), 1, lambda line: None)
    return Models(made, made, json.loads((tiny_checkpoint / "config.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("grid", [Grid(), Grid(tp=2, ep=2)], ids=lambda grid: grid.name)
def test_engine_and_trainer_agree(
    temperature: float, grid: Grid, engine_url: str, trained: Models, tmp_path: Path
) -> None:
    samples = generated(engine_url, temperature)

    def work(actor: TrainActor) -> list[Tensor]:
        batches = [collate_here(samples, [place], actor.config) for place in range(len(samples))]
        return actor.passes.logprobs(batches)

    found = on_every_rank(Case(grid, temperature=temperature), trained, tmp_path, work)[0]
    for sample, logprobs in zip(samples, found, strict=True):
        assert sample.rollout_logprobs is not None
        assert (logprobs - torch.from_numpy(sample.rollout_logprobs)).abs().max() < CLOSE


def generated(engine_url: str, temperature: float) -> list[Sample]:
    """Responses of the engine with its own log-probs."""
    sampling = {"temperature": temperature, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {"input_ids": PROMPTS, "sampling_params": sampling, "return_logprob": True}
    replies = httpx.post(
        f"{engine_url}/generate", json=body, headers=authorization(ENGINE_KEY), timeout=120, trust_env=False
    ).json()
    samples = []
    for index, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        logprobs, tokens, _ = zip(*reply["meta_info"]["output_token_logprobs"], strict=True)
        samples.append(
            Sample(
                index=index,
                group_index=index,
                tokens=numpy.asarray([*prompt, *tokens], dtype=numpy.int32),
                response_len=TOKENS,
                reward=0.0,
                rollout_logprobs=numpy.asarray(logprobs, dtype=numpy.float32),
            )
        )
    return samples
