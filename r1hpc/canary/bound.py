"""How far the engines' log-probs may be from the trainer's. Measured, not derived: see docs/operations.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from r1hpc.config import Config
from r1hpc.plan.model_shape import ModelShape
from r1hpc.sync.form import SyncForm

FLOAT32: Final = 1e-4
"""Both sides in float32, with equal weights: 1e-6 to 3e-6 on the rehearsal's model."""
ROUNDED: Final = 0.01
"""Both in float32, but the engine's weights rounded to fp8 after an update: 7e-4 on the rehearsal's model at the
canary's learning rate."""
BF16: Final = 0.03
"""0.014 on an H100, decode after release and resume."""
FP8: Final = 0.10
"""0.063 to 0.067 on an H200; 0.28 to 0.34 where scales were lost in a release."""


@dataclass(frozen=True)
class Bound:
    """Of the mean absolute difference."""

    value: float
    why: str


def mismatch_bound(config: Config, shape: ModelShape) -> Bound:
    """The bound for the precisions of both sides, unless the configuration has one."""
    if (given := config.run.canary_max_mismatch) is not None:
        return Bound(given, "run.canary_max_mismatch")
    form = SyncForm.of(config.sync, config.hosts.device, shape)
    if form is SyncForm.FP8 or config.sglang.kv_cache_dtype.startswith("fp8"):
        return Bound(FP8, "engines in fp8")
    if config.hosts.device == "cuda" or config.megatron.params_dtype == "bf16":
        return Bound(BF16, "bf16")
    if form is SyncForm.DEQUANTIZED:
        return Bound(ROUNDED, "engines whose weights are rounded to fp8")
    return Bound(FLOAT32, "float32 on both sides")
