"""What the loss of a micro-batch is weighted with is made without waiting for the GPU. Needs torch and pytest alone."""

from __future__ import annotations

import pytest
import torch

from r1hpc.train.normalization import MetricSums, token_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("per_token", [False, True])
def test_weights_and_metrics_do_not_wait_for_the_device(per_token: bool) -> None:
    mask = torch.ones(3, dtype=torch.bool, device="cuda")
    sample_of, mask_sums = torch.tensor([0, 0, 1], device="cuda"), torch.tensor([2.0, 1.0, 1.0], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = token_weights(mask, sample_of, mask_sums, per_token=per_token, cp_rank=0)
        metrics = MetricSums.of({"loss": found.sum(mask.float())}, {}, found.divisor)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.weights.tolist() == ([1.0, 1.0, 1.0] if per_token else [0.5, 0.5, 1.0])
    assert found.divisor.item() == (3 if per_token else 2)
    assert metrics.values() == {"loss": 1.0}
