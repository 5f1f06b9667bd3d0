"""In what form an engine is sent its weights."""

from __future__ import annotations

from enum import Enum

from r1hpc.checkpoint.fp8_format import BLOCK
from r1hpc.config.run_time import SyncConfig
from r1hpc.plan.model_shape import ModelShape
from r1hpc.sync.outline import SyncError


class SyncForm(Enum):
    """What becomes of a weight that the Hugging Face checkpoint quantises; all others are sent as they are."""

    FP8 = "fp8"
    """128 x 128 blocks of e4m3 and their scales."""
    DEQUANTIZED = "dequantized"
    """Quantised and back, in bf16: SGLang has no fp8 on a CPU, and there its weights are rounded as on a GPU."""
    PLAIN = "plain"
    """As the trainers hold it."""

    @classmethod
    def of(cls, config: SyncConfig, device: str, shape: ModelShape) -> SyncForm:
        """The form for engines on `device` ("cpu" or "cuda"). Raises SyncError for blocks of another size."""
        if not config.quantize or shape.fp8_block is None:
            return cls.PLAIN
        if shape.fp8_block != (BLOCK, BLOCK):
            raise SyncError(
                f"quantization_config.weight_block_size is {list(shape.fp8_block)}: weights are quantised online in"
                f" blocks of {BLOCK} x {BLOCK} alone; sync.quantize: false sends them unquantised"
            )
        return cls.DEQUANTIZED if device == "cpu" else cls.FP8
