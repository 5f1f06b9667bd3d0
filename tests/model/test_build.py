"""What is built on a rank: its stage's layers, in its precision, every weight waiting for its value."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func

from r1hpc.model.build import build_model, unloaded, weights
from r1hpc.model.experts import GroupedExperts
from r1hpc.model.packed import pack_sequences
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from tests.model.configs import hugging_face
from tests.model.ranks import on_ranks


@dataclass(frozen=True)
class Stage:
    moe: list[bool]
    """Of each layer, whether it has experts."""
    embedding: bool
    head: bool
    unloaded: bool
    """Whether every weight is."""
    dtypes: dict[str, torch.dtype]


def build_stage(layout: Layout, dtype: torch.dtype) -> Stage:
    model = build_model(hugging_face(), layout, TrainSettings(dtype))
    held = weights(model)
    moe = [isinstance(getattr(layer.mlp, "experts", None), GroupedExperts) for layer in model.decoder.layers]
    return Stage(
        moe=moe,
        embedding="embedding.word_embeddings.weight" in held,
        head={"decoder.final_layernorm.weight", "output_layer.weight"} <= set(held),
        unloaded=unloaded(model) == list(held),
        dtypes={name.rpartition(".")[2]: weight.dtype for name, weight in held.items()},
    )


def test_an_uneven_pipeline_has_each_layer_on_its_stage(tmp_path: Path) -> None:
    layout = Layout(pp=3, first_layers=2, last_layers=1)
    first, middle, last = on_ranks(lambda: build_stage(layout, torch.float32), layout, tmp_path)
    assert (first.moe, first.embedding, first.head) == ([False, True], True, False)
    assert (middle.moe, middle.embedding, middle.head) == ([True, True], False, False)
    assert (last.moe, last.embedding, last.head) == ([True], False, True)
    assert first.unloaded and middle.unloaded and last.unloaded


def test_weights_are_bf16_and_the_routers_bias_is_not(tmp_path: Path) -> None:
    (stage,) = on_ranks(lambda: build_stage(Layout(), torch.bfloat16), Layout(), tmp_path)
    assert stage.dtypes == {
        "weight": torch.bfloat16,
        "linear_fc1_weight": torch.bfloat16,
        "linear_fc2_weight": torch.bfloat16,
        "expert_bias": torch.float32,
    }


def name_one_unloaded() -> list[str]:
    model = build_model(hugging_face(), Layout(), TrainSettings())
    for name, weight in weights(model).items():
        if "layers.3.mlp.router" not in name:
            weight.zero_()
    return unloaded(model)


def test_a_weight_that_was_left_alone_is_named(tmp_path: Path) -> None:
    (names,) = on_ranks(name_one_unloaded, Layout(), tmp_path)
    assert sorted(names) == ["decoder.layers.3.mlp.router.expert_bias", "decoder.layers.3.mlp.router.weight"]


def gradients(settings: TrainSettings) -> dict[str, torch.Tensor]:
    """Of the tiny model with weights of a fixed seed, through Megatron's schedule."""
    model = build_model(hugging_face(), Layout(), settings)
    generator = torch.Generator().manual_seed(0)
    for name, weight in sorted(weights(model).items()):
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + ("norm" in name))
    sequences = pack_sequences([9, 7])
    tokens = torch.randint(0, 320, (1, 16), generator=generator)

    def forward_step(_: object, stage: torch.nn.Module) -> tuple[torch.Tensor, object]:
        hidden = stage(
            input_ids=tokens,
            position_ids=sequences.positions[None],
            attention_mask=None,
            packed_seq_params=sequences,
            output_processor=lambda hidden_states, output_layer, **_: output_layer(hidden_states)[0],
        )
        return hidden, lambda logits: (logits.square().sum(), torch.tensor(16), {})

    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=None,
        model=model,
        num_microbatches=1,
        seq_length=16,
        micro_batch_size=1,
    )
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1),
        TrainSettings(
            recompute_granularity="selective",
            megatron={"recompute_modules": ["layernorm", "mla_up_proj", "mlp", "shared_experts"]},
        ),
        TrainSettings(recompute_granularity="selective", megatron={"recompute_modules": ["moe"]}),
        TrainSettings(megatron={"bias_activation_fusion": True, "bias_dropout_fusion": True}),
    ],
    ids=["full", "selective", "moe", "fused"],
)
def test_recomputation_and_fusions_do_not_change_gradients(settings: TrainSettings, tmp_path: Path) -> None:
    (plain,) = on_ranks(lambda: gradients(TrainSettings()), Layout(), tmp_path)
    (other,) = on_ranks(lambda: gradients(settings), Layout(), tmp_path)
    assert len(plain) == 70
    assert set(plain) == set(other)
    for name, gradient in plain.items():
        assert (other[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
