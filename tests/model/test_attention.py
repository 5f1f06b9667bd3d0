"""Latent attention: the numbers of a dense float64 implementation and of transformers, on one rank and on several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from r1hpc.model.gather_tokens import gather_tokens
from r1hpc.model.parallel import Layout
from tests.forked_ranks import fork_ranks, join_gloo
from tests.model import latent_attention as latent
from tests.model.latent_attention import Case, Result, dense_reference, run_module, tokens, weights

TOLERANCE = 1e-5
CASES = [Case(), Case(yarn=False), Case(q_rank=None), Case(recompute=True)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_rank_gives_the_numbers_of_a_dense_implementation(case: Case, tmp_path: Path) -> None:
    lengths = [13, 1, 26]
    inputs = tokens(sum(lengths))
    assert_same(run_module(case, Layout(), lengths, *inputs, tmp_path), dense_reference(case, lengths, *inputs))


@pytest.mark.parametrize("case", [Case(), Case(yarn=False), Case(q_rank=None)], ids=str)
def test_one_rank_gives_the_numbers_of_transformers(case: Case, tmp_path: Path) -> None:
    lengths = [9, 20]
    inputs = tokens(sum(lengths))
    assert_same(run_module(case, Layout(), lengths, *inputs, tmp_path), transformers_reference(case, lengths, *inputs))


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (Case(), Layout(cp=2)),
        (Case(), Layout(cp=4)),
        (Case(), Layout(tp=2)),
        (Case(q_rank=None), Layout(tp=2)),
        (Case(), Layout(tp=4)),
        (Case(), Layout(tp=2, cp=2)),
        (Case(q_rank=None, yarn=False), Layout(tp=2, cp=2)),
        (Case(recompute=True), Layout(tp=2, cp=2)),
    ],
    ids=str,
)
def test_ranks_together_give_the_numbers_of_a_dense_implementation(case: Case, layout: Layout, tmp_path: Path) -> None:
    lengths = [8, 24, 16]
    inputs = tokens(sum(lengths))
    assert_same(run_module(case, layout, lengths, *inputs, tmp_path), dense_reference(case, lengths, *inputs))


@pytest.mark.parametrize("cp", [2, 4])
def test_padding_to_what_context_ranks_can_cut_changes_nothing(cp: int, tmp_path: Path) -> None:
    lengths, padded = [5, 8, 17, 1], [8, 8, 24, 8]
    hidden, loss_weights = tokens(sum(lengths))
    want = run_module(Case(), Layout(), lengths, hidden, loss_weights, tmp_path)
    got = run_module(
        Case(),
        Layout(cp=cp),
        padded,
        pad(hidden, lengths, padded, 7.0),
        pad(loss_weights, lengths, padded, 0.0),
        tmp_path,
    )
    real = pad(torch.ones(sum(lengths), 1), lengths, padded, 0.0).bool().squeeze(1)
    assert_same(Result(got.out[real], got.of_hidden[real], got.of_weights), want)
    assert not got.of_hidden[~real].any()


def test_chunks_of_one_token(tmp_path: Path) -> None:
    lengths = [8, 8]
    inputs = tokens(16)
    assert_same(run_module(Case(), Layout(cp=4), lengths, *inputs, tmp_path), dense_reference(Case(), lengths, *inputs))


def test_gathered_gradients_of_bfloat16_are_summed_in_float32(tmp_path: Path) -> None:
    # 256 + 3 * 0.5 is 258 in bfloat16, whose numbers there are 2 apart; summed in it, it would stay 256.
    def on_rank(rank: int) -> tuple[list[float], list[float]]:
        join_gloo(rank, 4, tmp_path / "rendezvous", 30)
        shard = torch.full((1, 1), float(rank), dtype=torch.bfloat16, requires_grad=True)
        group = dist.group.WORLD
        assert group is not None
        gathered = gather_tokens(shard, group, torch.tensor([3, 1, 0, 2]))
        torch.autograd.backward(gathered, torch.full_like(gathered, 256 if rank == 0 else 0.5))
        assert shard.grad is not None
        return gathered.flatten().tolist(), shard.grad.flatten().tolist()

    assert fork_ranks(on_rank, 4, 60) == [([3.0, 1.0, 0.0, 2.0], [258.0])] * 4


def test_a_gathered_token_gets_its_own_gradient_back(tmp_path: Path) -> None:
    def on_rank(rank: int) -> list[float]:
        join_gloo(rank, 2, tmp_path / "rendezvous", 30)
        shard = torch.zeros(2, 1, requires_grad=True)
        group = dist.group.WORLD
        assert group is not None
        gathered = gather_tokens(shard, group, torch.tensor([2, 0, 3, 1]))
        torch.autograd.backward(gathered, (rank + 1) * torch.tensor([[10.0], [20.0], [30.0], [40.0]]))
        assert shard.grad is not None
        return shard.grad.flatten().tolist()

    # In order stand the tokens 2, 0, 3, 1: token 0 gets 20, token 1 gets 40, and so on, three times over.
    assert fork_ranks(on_rank, 2, 60) == [[60.0, 120.0], [30.0, 90.0]]


def assert_same(got: Result, want: Result) -> None:
    """Each tensor within TOLERANCE of the largest value of the wanted one."""
    assert set(got.of_weights) == set(want.of_weights)
    pairs = {
        "output": (got.out, want.out),
        "gradient of the hidden states": (got.of_hidden, want.of_hidden),
        **{f"gradient of {name}": (got.of_weights[name], want.of_weights[name]) for name in want.of_weights},
    }
    errors = {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}
    wrong = {name: error for name, error in errors.items() if not error < TOLERANCE}
    assert not wrong


def pad(x: Tensor, lengths: Sequence[int], padded: Sequence[int], value: float) -> Tensor:
    """Each sequence's rows, then rows of the value up to the padded length."""
    rows = []
    for part, length in zip(torch.split(x, list(lengths)), padded, strict=True):
        rows += [part, torch.full((length - len(part), x.shape[1]), value)]
    return torch.cat(rows)


HF_NAMES = {
    "linear_q_proj": "q_proj",
    "linear_q_down_proj": "q_a_proj",
    "q_layernorm": "q_a_layernorm",
    "linear_q_up_proj": "q_b_proj",
    "linear_kv_down_proj": "kv_a_proj_with_mqa",
    "kv_layernorm": "kv_a_layernorm",
    "linear_kv_up_proj": "kv_b_proj",
    "linear_proj": "o_proj",
}


def transformers_reference(case: Case, lengths: Sequence[int], hidden: Tensor, loss_weights: Tensor) -> Result:
    """transformers' attention, one sequence after another, in float32."""
    config = hf_config(case)
    config._attn_implementation = "eager"
    module, rotary = DeepseekV3Attention(config, 0), DeepseekV3RotaryEmbedding(config)
    state = {name.replace(*_names(name)): weight for name, weight in weights(case).items()}
    module.load_state_dict(state)
    leaf = hidden.clone().requires_grad_()
    outs = []
    for sequence in torch.split(leaf, list(lengths)):
        mask = torch.full((len(sequence), len(sequence)), float("-inf")).triu(1)[None, None]
        angles = rotary(sequence, torch.arange(len(sequence))[None])
        outs.append(module(sequence[None], angles, mask)[0][0])
    out = torch.cat(outs)
    torch.autograd.backward((out * loss_weights).sum())
    assert leaf.grad is not None
    own = dict(module.named_parameters())
    gradients = {name: own[name.replace(*_names(name))].grad for name in weights(case)}
    return Result(
        out.detach(), leaf.grad, {name: gradient for name, gradient in gradients.items() if gradient is not None}
    )


def _names(name: str) -> tuple[str, str]:
    ours = name.removesuffix(".weight")
    return ours, HF_NAMES[ours]


def hf_config(case: Case) -> DeepseekV3Config:
    yarn = {
        "rope_type": "yarn",
        "rope_theta": latent.THETA,
        "factor": latent.YARN_FACTOR,
        "original_max_position_embeddings": latent.YARN_LENGTH,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    return DeepseekV3Config(
        hidden_size=latent.HIDDEN,
        num_attention_heads=latent.HEADS,
        num_key_value_heads=latent.HEADS,
        q_lora_rank=case.q_rank,
        kv_lora_rank=latent.KV_RANK,
        qk_nope_head_dim=latent.NOPE,
        qk_rope_head_dim=latent.ROPE,
        v_head_dim=latent.VALUE,
        rms_norm_eps=latent.EPS,
        rope_parameters=yarn if case.yarn else {"rope_type": "default", "rope_theta": latent.THETA},
        max_position_embeddings=64,
    )
