"""A micro-batch on a GPU holds what it holds on the host. Needs no more than torch, numpy and pytest."""

from __future__ import annotations

import numpy
import pytest
import torch

from r1hpc.train.collate import collate
from r1hpc.types import Sample

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

FIELDS = ("tokens", "targets", "loss_mask", "rows", "response_mask", "sample_of", "mask_sums", "rollout_logprobs")


@pytest.mark.parametrize(("cp_rank", "cp_size"), [(0, 1), (0, 2), (1, 2)])
def test_one_pinned_copy_gives_every_array(cp_rank: int, cp_size: int) -> None:
    random = numpy.random.default_rng(0)
    samples = [
        Sample(
            index=index,
            group_index=0,
            tokens=random.integers(1, 1000, 40 + response_len, dtype=numpy.int32),
            response_len=response_len,
            reward=1.0,
            rollout_logprobs=-random.random(response_len, dtype=numpy.float32),
            loss_mask=random.random(response_len) < 0.5,
        )
        for index, response_len in enumerate((9, 1, 4000))
    ]
    here = collate(samples, (0, 1, 2), cp_rank=cp_rank, cp_size=cp_size, multiple=16, device="cpu")
    there = collate(samples, (0, 1, 2), cp_rank=cp_rank, cp_size=cp_size, multiple=16, device="cuda")
    for field in FIELDS:
        found = getattr(there, field)
        assert found.is_cuda
        assert torch.equal(found.cpu(), getattr(here, field)), field
    assert torch.equal(there.sequences.positions.cpu(), here.sequences.positions)
