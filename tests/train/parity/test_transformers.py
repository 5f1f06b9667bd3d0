"""The whole GRPO step against an independent one: plain torch on transformers' model, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from r1hpc.checkpoint.names import tensors
from r1hpc.plan.model_shape import model_shape
from r1hpc.types import Sample
from tests.train.parity import reference
from tests.train.parity.reference import Choices
from tests.train.parity.run import Case, Grid, Models, gradient, worst

LOSS, GRADIENTS = 1e-5, 1e-4
MIXED = Grid(tp=2, pp=2, cp=2, ep=4, last_layers=2)

ALL_TERMS = {"use_kl_loss": True, "kl_loss_coef": 0.05, "kl_loss_type": "low_var_kl", "entropy_coef": 0.01}
OFF_POLICY = {"use_rollout_logprobs": True, "eps_clip_high": 0.28}
CASES: Mapping[str, tuple[dict[str, Any], Choices]] = {
    "per sample": (
        ALL_TERMS | OFF_POLICY,
        Choices(temperature=0.8, kl_loss_coef=0.05, entropy_coef=0.01),
    ),
    "per token": (
        ALL_TERMS | OFF_POLICY | {"calculate_per_token_loss": True},
        Choices(temperature=0.8, kl_loss_coef=0.05, entropy_coef=0.01, per_token=True),
    ),
    "tis": (
        ALL_TERMS | {"use_tis": True, "tis_clip": 1.1, "eps_clip_high": 0.28},
        Choices(temperature=0.8, kl_loss_coef=0.05, entropy_coef=0.01, tis_clip=1.1),
    ),
}


# On a layout the two others are those of one process: test_layouts.py, to a tenth of this tolerance.
@pytest.mark.parametrize(
    ("grid", "name"),
    [*((Grid(), name) for name in CASES), (MIXED, "per sample")],
    ids=lambda value: getattr(value, "name", value),
)
def test_loss_and_gradients_are_those_of_the_plain_implementation(
    name: str,
    grid: Grid,
    models: Models,
    samples: list[Sample],
    transformers_models: dict[str, DeepseekV3ForCausalLM],
    tmp_path: Path,
) -> None:
    grpo, choices = CASES[name]
    step = samples[:8]
    loss, expected = plain_step(transformers_models, step, choices, from_rollout="use_rollout_logprobs" in grpo)
    found = gradient(Case(grid, grpo=grpo, temperature=choices.temperature), models, step, tmp_path)
    assert abs(loss) > 1e-3
    assert found.metrics["loss"] == pytest.approx(loss, rel=LOSS, abs=LOSS)
    assert worst(found.tensors, in_megatron(expected, models.hugging_face)) < (GRADIENTS, "")


def plain_step(
    transformers_models: dict[str, DeepseekV3ForCausalLM],
    samples: Sequence[Sample],
    choices: Choices,
    from_rollout: bool,
) -> tuple[float, Mapping[str, Tensor]]:
    """Loss and gradients by transformers' names."""
    policy, ref = transformers_models["policy"], transformers_models["ref"]
    policy.zero_grad()
    with torch.no_grad():
        ref_logprobs = [reference.response_logprobs(ref, sample, choices.temperature)[0] for sample in samples]
        old = [reference.response_logprobs(policy, sample, choices.temperature)[0] for sample in samples]
    if from_rollout:
        old = [torch.from_numpy(sample.rollout_logprobs) for sample in samples]
    loss = reference.loss(policy, samples, reference.advantages(samples), old, ref_logprobs, choices)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), dict(reference.gradients(policy))


def in_megatron(gradients: Mapping[str, Tensor], hugging_face: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same under Megatron's keys: transformers has a layer's experts in one tensor, files have each by itself."""
    found: dict[str, Tensor] = {}
    for name in tensors(model_shape(hugging_face, Path("config.json"))):
        if name.copy_of is not None or name.hf.endswith("e_score_correction_bias"):
            continue
        whole = found.setdefault(name.key, torch.full(name.global_shape, torch.nan))
        place = whole[tuple(slice(o, o + n) for o, n in zip(name.offset, name.box, strict=True))]
        place.copy_(of_file_tensor(gradients, name.hf).reshape(place.shape))
    assert not any(tensor.isnan().any() for tensor in found.values())
    return found


def of_file_tensor(gradients: Mapping[str, Tensor], name: str) -> Tensor:
    """The gradient of a tensor of the checkpoint's files."""
    if ".mlp.experts." not in name:
        return gradients[name]
    layer, _, rest = name.partition(".mlp.experts.")
    expert, projection, _ = rest.split(".")
    if projection == "down_proj":
        return gradients[f"{layer}.mlp.experts.down_proj"][int(expert)]
    gate, up = gradients[f"{layer}.mlp.experts.gate_up_proj"][int(expert)].chunk(2)
    return gate if projection == "gate_proj" else up
