"""A tiny policy and a tiny reference, converted."""

from __future__ import annotations

import json
from pathlib import Path

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.train.parity.run import Models


def convert_tiny_models(base: Path) -> Models:
    """Written below `base`."""
    for seed, name in enumerate(("policy", "ref")):
        write_tiny_model(base / name, seed=seed, shards=1, mtp=False, fp8=False)
        source = open_checkpoint(base / name)
        slices = make_slices(source.shape.num_layers, 1, None, None, 1, "layout")
        convert_all(plan_conversion(source, base / f"{name}-torch_dist", slices, 1), 1, lambda line: None)
    values = json.loads((base / "policy/config.json").read_text(encoding="utf-8"))
    return Models(base / "policy-torch_dist", base / "ref-torch_dist", values)
