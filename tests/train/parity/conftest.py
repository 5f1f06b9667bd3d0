"""A tiny policy and a tiny reference, in every form, and samples whose routing no rounding can change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.types import Sample
from tests.train.parity.reference import load, with_rollout_logprobs
from tests.train.parity.run import Models
from tests.train.parity.samples import in_groups, make_samples

COUNT = 24
MARGIN = 1e-4
"""Between the scores of an expert that is chosen and of one that is not: rounding moves scores by less than 1e-5."""


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """bf16 checkpoints: policy and ref."""
    base = tmp_path_factory.mktemp("parity")
    for seed, name in enumerate(("policy", "ref")):
        write_tiny_model(base / name, seed=seed, shards=1, mtp=False, fp8=False)
        calm(base / name)
    return {name: base / name for name in ("policy", "ref")}


def calm(directory: Path) -> None:
    """Let each layer add a quarter of what it does: rounding then grows less from layer to layer."""
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    outputs = [name for name in tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]
    assert outputs
    save_file(tensors | {name: tensors[name] / 4 for name in outputs}, file, {"format": "pt"})


@pytest.fixture(scope="session")
def models(hugging_face: dict[str, Path]) -> Models:
    """The same, converted."""
    made = {}
    for name, directory in hugging_face.items():
        source = open_checkpoint(directory)
        slices = make_slices(source.shape.num_layers, 1, None, None, 1, "layout")
        made[name] = directory.parent / f"{name}-torch_dist"
        convert_all(plan_conversion(source, made[name], slices, 1), 1, lambda line: None)
    config = json.loads((hugging_face["policy"] / "config.json").read_text(encoding="utf-8"))
    return Models(made["policy"], made["ref"], config)


@pytest.fixture(scope="session")
def transformers_models(hugging_face: dict[str, Path]) -> dict[str, DeepseekV3ForCausalLM]:
    """The same, for the independent implementation."""
    return {name: load(directory) for name, directory in hugging_face.items()}


@pytest.fixture(scope="session")
def samples(transformers_models: dict[str, DeepseekV3ForCausalLM]) -> list[Sample]:
    """24 samples, some of them masked in part, with an engine's log-probs that are a little off the policy's."""
    policy = transformers_models["policy"]
    drawn = make_samples(64, policy.config.vocab_size, longest=90, masked=True)
    steady = [
        sample
        for sample in drawn
        if all(least_margin(model, sample) > MARGIN for model in transformers_models.values())
    ][:COUNT]
    assert len(steady) == COUNT
    return with_rollout_logprobs(policy, in_groups(steady))


def least_margin(model: DeepseekV3ForCausalLM, sample: Sample) -> float:
    """The least difference between a routing score, of an expert or a group, that was chosen and one that was not."""
    margins: list[Tensor] = []
    config: Any = model.config

    def record(gate: Any, _: object, logits: Tensor) -> None:
        scores = logits.sigmoid() + gate.e_score_correction_bias
        grouped = scores.view(-1, config.n_group, config.n_routed_experts // config.n_group)
        groups = grouped.topk(2, -1)[0].sum(-1)
        best_groups = groups.topk(config.topk_group + 1, -1)[0]
        margins.append(best_groups[:, -2] - best_groups[:, -1])
        of_chosen = grouped.gather(
            1, groups.topk(config.topk_group, -1)[1][..., None].expand(-1, -1, grouped.shape[-1])
        )
        best = of_chosen.flatten(1).topk(config.num_experts_per_tok + 1, -1)[0]
        margins.append(best[:, -2] - best[:, -1])

    hooks = [
        module.register_forward_hook(record) for name, module in model.named_modules() if name.endswith("mlp.gate")
    ]
    assert hooks
    with torch.no_grad():
        model(torch.from_numpy(sample.tokens).long()[None])
    for hook in hooks:
        hook.remove()
    return float(torch.cat(margins).min())
