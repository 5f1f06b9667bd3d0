"""What the configuration makes of weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r1hpc.config.run_time import SyncConfig
from r1hpc.rollout.engine_args import WEIGHT_LOADER
from r1hpc.sync import engine_loader
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncError
from tests.sync.test_catalog import SHAPE


@pytest.mark.parametrize(
    ("device", "quantize", "block", "form"),
    [
        ("cuda", True, (128, 128), SyncForm.FP8),
        ("cpu", True, (128, 128), SyncForm.DEQUANTIZED),
        ("cuda", False, (128, 128), SyncForm.PLAIN),
        ("cuda", True, None, SyncForm.PLAIN),
    ],
)
def test_form(device: str, quantize: bool, block: tuple[int, int] | None, form: SyncForm) -> None:
    assert SyncForm.of(SyncConfig(quantize=quantize), device, replace(SHAPE, fp8_block=block)) is form


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(SyncError, match=r"is \[64, 64\].* blocks of 128 x 128 alone"):
        SyncForm.of(SyncConfig(), "cuda", replace(SHAPE, fp8_block=(64, 64)))


def test_the_engines_are_started_with_the_loader_that_exists() -> None:
    assert f"{engine_loader.load.__module__}.{engine_loader.load.__qualname__}" == WEIGHT_LOADER
