"""One tiny model in every form, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.checkpoint.cast import plan_cast, run_cast_task
from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.rehearsal.tiny_model import write_tiny_model

# No size is a multiple of 128, and most have a partial block.
ODD_SIZES = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "moe_intermediate_size": 160,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "n_routed_experts": 4,
    "num_hidden_layers": 3,
    "vocab_size": 264,
}


@pytest.fixture(scope="session")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the model as `fp8`, `bf16` (its cast) and `torch_dist` (of the cast). Copy, never write."""
    base = tmp_path_factory.mktemp("forms")
    write_tiny_model(base / "fp8", overrides=ODD_SIZES)
    run_cast_task(plan_cast(base / "fp8", base / "bf16"), 0, 1, 1, _quiet)
    source = open_checkpoint(base / "bf16")
    slices = make_slices(source.shape.num_layers, 3, None, None, 2, "layout")
    convert_all(plan_conversion(source, base / "torch_dist", slices, 2), 1, _quiet)
    return base


def _quiet(line: str) -> None:
    """Progress is not what these tests are about."""
