"""The shipped models' config.json, and Megatron's config for the tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer import MLATransformerConfig

from r1hpc.model.config import transformer_config
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings

ROOT = Path(__file__).parents[2]


def hugging_face(model: str = "tiny-r1", **changes: Any) -> dict[str, Any]:
    """The values of a shipped config.json, some of them changed."""
    values = json.loads((ROOT / "configs/models" / model / "config.json").read_text())
    return {**values, **changes}


def tiny_config(
    layout: Layout | None = None, dtype: torch.dtype = torch.float32, **changes: Any
) -> MLATransformerConfig:
    """Megatron's config of the tiny model, some values of its config.json changed."""
    return transformer_config(hugging_face(**changes), layout or Layout(), TrainSettings(dtype=dtype))
