"""One layer's latent attention: its weights, a dense float64 reference, and the module on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import MLATransformerConfig
from torch import Tensor

from r1hpc.model import compat
from r1hpc.model.attention import LatentAttention
from r1hpc.model.packed import local_indices, pack_sequences
from r1hpc.model.parallel import Layout
from tests.forked_ranks import fork_ranks, join_gloo

DEADLINE_S = 90.0
HIDDEN, HEADS, KV_RANK, NOPE, ROPE, VALUE = 24, 4, 10, 6, 8, 5
EPS = 1e-6
YARN_FACTOR, YARN_LENGTH, THETA = 4.0, 16, 10000.0

SPLIT_AXIS = {
    "linear_q_proj.weight": 0,
    "linear_q_up_proj.weight": 0,
    "linear_kv_up_proj.weight": 0,
    "linear_proj.weight": 1,
}
"""Of the weights that tensor ranks share; of the others each has all, and a gradient of its part of the tokens."""


@dataclass(frozen=True)
class Case:
    """What varies of the attention."""

    q_rank: int | None = 12
    yarn: bool = True
    recompute: bool = False


@dataclass(frozen=True)
class Result:
    """Outputs and gradients; of the module, put together from all ranks."""

    out: Tensor
    """[W, hidden]"""
    of_hidden: Tensor
    """[W, hidden]"""
    of_weights: Mapping[str, Tensor]


def weights(case: Case) -> dict[str, Tensor]:
    """Whole, float32, by the names of the module's parameters."""
    shapes: dict[str, tuple[int, ...]] = {
        "linear_kv_down_proj.weight": (KV_RANK + ROPE, HIDDEN),
        "kv_layernorm.weight": (KV_RANK,),
        "linear_kv_up_proj.weight": (HEADS * (NOPE + VALUE), KV_RANK),
        "linear_proj.weight": (HIDDEN, HEADS * VALUE),
    }
    queries = HEADS * (NOPE + ROPE)
    if case.q_rank is None:
        shapes["linear_q_proj.weight"] = (queries, HIDDEN)
    else:
        shapes["linear_q_down_proj.weight"] = (case.q_rank, HIDDEN)
        shapes["q_layernorm.weight"] = (case.q_rank,)
        shapes["linear_q_up_proj.weight"] = (queries, case.q_rank)
    random = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=random) * 0.5 for name, shape in shapes.items()}


def tokens(count: int) -> tuple[Tensor, Tensor]:
    """([count, hidden] hidden states, [count, hidden] weights of the outputs in the loss), float32."""
    random = torch.Generator().manual_seed(4)
    return torch.randn(count, HIDDEN, generator=random), torch.randn(count, HIDDEN, generator=random)


def dense_reference(case: Case, lengths: Sequence[int], hidden: Tensor, loss_weights: Tensor) -> Result:
    """In float64, a sequence and a head at a time, straight from the paper's formulas."""
    leaf = hidden.double().requires_grad_()
    own = {name: weight.double().requires_grad_() for name, weight in weights(case).items()}
    outs = [_dense_sequence(case, own, sequence) for sequence in torch.split(leaf, list(lengths))]
    out = torch.cat(outs)
    torch.autograd.backward((out * loss_weights).sum())
    assert leaf.grad is not None
    gradients = {name: weight.grad for name, weight in own.items() if weight.grad is not None}
    return Result(out.detach(), leaf.grad, gradients)


def _dense_sequence(case: Case, own: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * own[name]

    if case.q_rank is None:
        queries = hidden @ own["linear_q_proj.weight"].T
    else:
        compressed = norm(hidden @ own["linear_q_down_proj.weight"].T, "q_layernorm.weight")
        queries = compressed @ own["linear_q_up_proj.weight"].T
    down = hidden @ own["linear_kv_down_proj.weight"].T
    expanded = norm(down[:, :KV_RANK], "kv_layernorm.weight") @ own["linear_kv_up_proj.weight"].T
    rotary_key = _turned(case, down[:, KV_RANK:])
    scale = 1 / math.sqrt(NOPE + ROPE) * ((0.1 * math.log(YARN_FACTOR) + 1) ** 2 if case.yarn else 1)
    attended = []
    for query, key_value in zip(queries.chunk(HEADS, 1), expanded.chunk(HEADS, 1), strict=True):
        scores = query[:, :NOPE] @ key_value[:, :NOPE].T + _turned(case, query[:, NOPE:]) @ rotary_key.T
        later = torch.ones_like(scores).triu(1).bool()
        attended.append((scores * scale).masked_fill(later, float("-inf")).softmax(-1) @ key_value[:, NOPE:])
    return torch.cat(attended, 1) @ own["linear_proj.weight"].T


def _turned(case: Case, x: Tensor) -> Tensor:
    """Pairs of neighbors as complex numbers, turned by the angles of their places."""
    pairs = ROPE // 2
    frequencies = THETA ** -(torch.arange(pairs).double() / pairs)
    if case.yarn:
        # In 16 tokens, feature pair i of 4 turns 16 / (2 pi 10^i) times: 2.5, 0.25, ...; so with beta_fast 32 and
        # beta_slow 1, the ramp goes from pair 0 (below 32 turns) to pair ceil(0.41) = 1.
        kept = torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
        frequencies = frequencies * kept + frequencies / YARN_FACTOR * (1 - kept)
    angles = torch.arange(len(x)).double()[:, None] * frequencies
    turned = torch.view_as_complex(x.reshape(-1, pairs, 2)) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], 1)


def run_module(
    case: Case, layout: Layout, lengths: Sequence[int], hidden: Tensor, loss_weights: Tensor, scratch: Path
) -> Result:
    """The module in float32 on the ranks of the layout; hidden and loss_weights are of the whole sequences."""
    ranks, rendezvous = layout.tp * layout.cp, scratch / f"rendezvous-{layout.tp}-{layout.cp}"

    def on_rank(rank: int) -> tuple[tuple[int, int], Tensor, Result]:
        torch.set_num_threads(1)
        compat.prepare("cpu")
        join_gloo(rank, ranks, rendezvous, DEADLINE_S)
        layout.initialize()
        return _run_rank(case, layout, lengths, hidden, loss_weights)

    answers = fork_ranks(on_rank, ranks, DEADLINE_S)
    rendezvous.unlink()
    places = torch.cat([mine for _, mine, _ in answers]).argsort()
    parts = {where: result.of_weights for where, _, result in answers}
    return Result(
        out=torch.cat([result.out for *_, result in answers])[places],
        of_hidden=torch.cat([result.of_hidden for *_, result in answers])[places],
        of_weights={name: _whole_gradient(name, layout, parts) for name in weights(case)},
    )


def _run_rank(
    case: Case, layout: Layout, lengths: Sequence[int], hidden: Tensor, loss_weights: Tensor
) -> tuple[tuple[int, int], Tensor, Result]:
    """((tensor rank, context rank), the places of its tokens, its outputs and its part of every gradient)."""
    tp_rank, cp_rank = (
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_context_parallel_rank(),
    )
    module = LatentAttention(_config(case, layout), 1, ProcessGroupCollection.use_mpu_process_groups())
    own = dict(module.named_parameters())
    assert set(own) == set(weights(case))
    with torch.no_grad():
        for name, weight in weights(case).items():
            axis = SPLIT_AXIS.get(name)
            own[name].copy_(weight if axis is None else weight.chunk(layout.tp, axis)[tp_rank])
    mine = local_indices(lengths, cp_rank, layout.cp).chunk(layout.tp)[tp_rank]
    leaf = hidden[mine].unsqueeze(1).requires_grad_()
    sequences = pack_sequences(lengths, cp_rank, layout.cp)
    out, bias = module(leaf, attention_mask=None, packed_seq_params=sequences, rotary_pos_emb=None)
    assert bias is None
    (out.squeeze(1) * loss_weights[mine]).sum().backward()
    assert leaf.grad is not None
    gradients = {name: weight.grad for name, weight in own.items() if weight.grad is not None}
    return (tp_rank, cp_rank), mine, Result(out.detach().squeeze(1), leaf.grad.squeeze(1), gradients)


def _whole_gradient(name: str, layout: Layout, parts: Mapping[tuple[int, int], Mapping[str, Tensor]]) -> Tensor:
    """As Megatron puts it together: summed over context ranks, and over tensor ranks unless they share the weight."""
    by_tp = [
        torch.stack([parts[tp_rank, cp_rank][name] for cp_rank in range(layout.cp)]).sum(0)
        for tp_rank in range(layout.tp)
    ]
    axis = SPLIT_AXIS.get(name)
    return torch.stack(by_tp).sum(0) if axis is None else torch.cat(by_tp, axis)


def _config(case: Case, layout: Layout) -> MLATransformerConfig:
    recompute = {"recompute_granularity": "selective", "recompute_modules": ["mla_up_proj"]} if case.recompute else {}
    return MLATransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        q_lora_rank=case.q_rank,
        kv_lora_rank=KV_RANK,
        qk_head_dim=NOPE,
        qk_pos_emb_head_dim=ROPE,
        v_head_dim=VALUE,
        rope_type="yarn" if case.yarn else "rope",
        rotary_base=THETA,
        rotary_scaling_factor=YARN_FACTOR,
        original_max_position_embeddings=YARN_LENGTH,
        beta_fast=32.0,
        beta_slow=1.0,
        mscale=1.0,
        mscale_all_dim=1.0,
        qk_layernorm=True,
        layernorm_epsilon=EPS,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=layout.tp,
        context_parallel_size=layout.cp,
        sequence_parallel=layout.tp > 1,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        **recompute,
    )
