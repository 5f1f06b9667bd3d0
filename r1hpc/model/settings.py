"""What the model needs of our configuration, besides config.json and the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from r1hpc.config.engines import MegatronConfig
from r1hpc.config.portable import SETTLED
from r1hpc.config.training import PerfConfig
from r1hpc.model.compat import Device

DTYPES: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""By the names of megatron.params_dtype."""

WITHOUT_EFFECT = frozenset(name for settled in SETTLED for name in settled.fields)
"""Fields that the configuration accepts, with a notice, and that must not reach Megatron."""


@dataclass(frozen=True)
class TrainSettings:
    """How the model is trained: precision, device, recomputation, transport of tokens, and fields of Megatron's own."""

    dtype: torch.dtype = torch.float32
    """Of parameters and activations; main gradients, router and its bias stay float32."""
    device: Device = "cpu"
    """meta builds without memory, to count."""
    recompute_granularity: Literal["full", "selective"] | None = None
    recompute_method: Literal["uniform", "block"] | None = None
    recompute_num_layers: int | None = None
    dispatcher: Literal["alltoall", "allgather", "flex"] = "alltoall"
    flex_backend: Literal["deepep", "hybridep"] | None = None
    megatron: Mapping[str, object] = field(default_factory=dict)
    """Fields of MLATransformerConfig by their own names; none may contradict what is derived."""

    @classmethod
    def of(cls, perf: PerfConfig, megatron: MegatronConfig, device: Device) -> TrainSettings:
        """The settings that these sections and hosts.device ask for."""
        return cls(
            dtype=DTYPES[megatron.params_dtype],
            device=device,
            recompute_granularity=perf.recompute_granularity,
            recompute_method=perf.recompute_method,
            recompute_num_layers=perf.recompute_num_layers,
            dispatcher=megatron.moe_token_dispatcher_type,
            flex_backend=megatron.moe_flex_dispatcher_backend,
            megatron={name: value for name, value in megatron.passed_through.items() if name not in WITHOUT_EFFECT},
        )
