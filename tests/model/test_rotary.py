"""Rotary embedding: the numbers of transformers' DeepseekV3 and of megatron-core, and pairs turned as defined."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from megatron.core.models.common.embeddings import RotaryEmbedding, YarnRotaryEmbedding
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from r1hpc.model import compat
from r1hpc.model.packed import pack_sequences
from r1hpc.model.rotary import Rotary, RotaryTable, Yarn, rotary_table, rotate
from tests.forked_ranks import fork_ranks

R1 = Rotary(width=64, base=10000.0, yarn=Yarn(40.0, 4096, 32.0, 1.0, 1.0, 1.0))
ROTARIES = {
    "r1": R1,
    "plain": replace(R1, yarn=None),
    "tiny": Rotary(16, 10000.0, Yarn(4.0, 64, 32.0, 1.0, 1.0, 1.0)),
    "two mscales": Rotary(32, 50000.0, Yarn(8.0, 512, 16.0, 2.0, 0.7, 1.3)),
    "all features turn slowly": Rotary(8, 10000.0, Yarn(4.0, 4, 32.0, 1.0, 1.0, 1.0)),
}
LENGTHS = [5000, 3, 160]


@pytest.mark.parametrize("name", ROTARIES)
def test_tables_are_those_of_transformers(name: str) -> None:
    sequences = pack_sequences(LENGTHS)
    table = rotary_table(ROTARIES[name], sequences)
    hf = DeepseekV3RotaryEmbedding(hf_config(ROTARIES[name]))
    cos, sin = hf(torch.empty(0, dtype=torch.float32), sequences.positions[None])
    half = ROTARIES[name].width // 2
    assert table.cos.dtype == torch.float32
    torch.testing.assert_close(table.cos, cos[0, :, :half], rtol=0, atol=1e-6)
    torch.testing.assert_close(table.sin, sin[0, :, :half], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["r1", "plain", "tiny", "two mscales"])
def test_tables_are_those_of_megatron(name: str) -> None:
    (want,) = fork_ranks(lambda _: megatron_table(ROTARIES[name], max(LENGTHS)), 1, 60)
    sequences = pack_sequences(LENGTHS)
    table = rotary_table(ROTARIES[name], sequences)
    torch.testing.assert_close(table.cos, want[0][sequences.positions], rtol=0, atol=1e-6)
    torch.testing.assert_close(table.sin, want[1][sequences.positions], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ROTARIES)
def test_softmax_factor_is_that_of_transformers(name: str) -> None:
    config = hf_config(ROTARIES[name])
    hf = DeepseekV3Attention(config, 0)
    assert ROTARIES[name].softmax_factor / math.sqrt(hf.qk_head_dim) == pytest.approx(hf.scaling, rel=1e-12)


def test_numbers_of_r1_by_hand() -> None:
    assert R1.softmax_factor == pytest.approx((0.1 * math.log(40) + 1) ** 2)
    assert R1.amplitude == 1
    # Features 0 to 10 turn more than 32 times in 4096 tokens, those from 23 on less than once.
    own = 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    torch.testing.assert_close(R1.frequencies()[:11], own[:11])
    torch.testing.assert_close(R1.frequencies()[23:], own[23:] / 40)
    assert bool((R1.frequencies()[11:23] < own[11:23]).all() and (R1.frequencies()[11:23] > own[11:23] / 40).all())


def test_pairs_turn_like_complex_numbers() -> None:
    x = torch.randn(7, 3, 64, dtype=torch.float64)
    angles = torch.randn(7, 32, dtype=torch.float64)
    turned = torch.view_as_complex(x.view(7, 3, 32, 2)) * torch.exp(1j * angles)[:, None]
    got = rotate(x, RotaryTable(angles.cos(), angles.sin()))
    torch.testing.assert_close(got, torch.cat([turned.real, turned.imag], -1))


def test_bfloat16_is_rounded_once() -> None:
    x, angles = torch.randn(9, 64).bfloat16(), torch.randn(9, 32)
    table = RotaryTable(angles.cos(), angles.sin())
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_a_table_is_made_once_a_micro_batch_and_can_be_trained_on_after_inference() -> None:
    sequences, other = pack_sequences([8]), pack_sequences([8])
    with torch.inference_mode():
        table = rotary_table(R1, sequences)
    assert rotary_table(replace(R1), sequences) is table
    assert rotary_table(R1, other) is not table
    assert rotary_table(replace(R1, yarn=None), sequences) is not table
    x = torch.randn(8, 64, requires_grad=True)
    torch.autograd.backward(rotate(x, table).square().sum())
    assert x.grad is not None
    # A rotation keeps lengths: the gradient of the sum of squares is 2 x, rotated or not.
    torch.testing.assert_close(x.grad, 2 * x.detach())


def hf_config(rotary: Rotary) -> DeepseekV3Config:
    yarn = rotary.yarn
    scaling = (
        {"rope_type": "default", "rope_theta": rotary.base}
        if yarn is None
        else {
            "rope_type": "yarn",
            "rope_theta": rotary.base,
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_length,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "mscale": yarn.mscale,
            "mscale_all_dim": yarn.mscale_all_dim,
        }
    )
    return DeepseekV3Config(
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=rotary.width,
        v_head_dim=8,
        rope_parameters=scaling,
        max_position_embeddings=4096 * 40,
    )


def megatron_table(rotary: Rotary, length: int) -> tuple[Tensor, Tensor]:
    """[length, width / 2] cosines and sines as upstream's latent attention applies them."""
    compat.prepare("cpu")
    yarn, amplitude = rotary.yarn, 1.0
    if yarn is None:
        angles = RotaryEmbedding(rotary.width, 1.0, rotary_base=rotary.base, use_cpu_initialization=True)(length)
    else:
        angles, amplitude = YarnRotaryEmbedding(
            rotary.width,
            rotary_base=rotary.base,
            use_cpu_initialization=True,
            scaling_factor=yarn.factor,
            original_max_position_embeddings=yarn.original_length,
            beta_fast=yarn.beta_fast,
            beta_slow=yarn.beta_slow,
            mscale=yarn.mscale,
            mscale_all_dim=yarn.mscale_all_dim,
        )(length)
    angles = angles[:, 0, 0, : rotary.width // 2]
    return angles.cos() * amplitude, angles.sin() * amplitude
