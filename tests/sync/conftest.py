"""One small model with weights in partial blocks, as it is released and as the trainer loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.config import Config, load_config
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.train.parity.run import Models

ROOT = Path(__file__).parents[2]

# Most sizes leave a partial block; of tensor parallelism 2, also of a half.
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 320,
    "moe_intermediate_size": 160,
    "q_lora_rank": 96,
    "kv_lora_rank": 64,
    "n_routed_experts": 4,
    "num_hidden_layers": 4,
    "vocab_size": 264,
}


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in block fp8, with a prediction layer, which is not trained."""
    directory = tmp_path_factory.mktemp("released") / "fp8"
    write_tiny_model(directory, overrides=SIZES)
    return directory


@pytest.fixture(scope="session")
def converted(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """The same for the trainer."""
    return for_trainer(released, tmp_path_factory.mktemp("converted") / "torch_dist")


def for_trainer(source: Path, target: Path) -> Models:
    """Convert a Hugging Face checkpoint."""
    checkpoint = open_checkpoint(source)
    slices = make_slices(checkpoint.shape.num_layers, 1, None, None, 1, "layout")
    convert_all(plan_conversion(checkpoint, target, slices, 1), 1, lambda line: None)
    return Models(target, target, json.loads((source / "config.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny R1 in bf16: what an engine on a CPU starts from."""
    directory = tmp_path_factory.mktemp("tiny") / "tiny-r1-bf16"
    write_tiny_model(directory, fp8=False, mtp=False)
    return directory


@pytest.fixture(scope="session")
def engine_config(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The rehearsal's configuration on it."""
    overrides = [f"vars.WORK={tmp_path_factory.mktemp('work')}", f"ckpt.bf16_checkpoint={tiny_checkpoint}"]
    return load_config(ROOT / "tests" / "pipeline.yaml", overrides=overrides).config
