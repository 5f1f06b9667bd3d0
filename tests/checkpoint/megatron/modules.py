"""The modules that megatron-core's local layer spec lacks for latent attention: forward only, any device."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer import MLATransformerConfig
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Upstream's wrapper of torch's norm refuses sequence parallelism, which experts with TP > 1 require."""

    def __init__(self, config: MLATransformerConfig, hidden_size: int, eps: float = 1e-6, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class ReplicatedLinear(nn.Module):
    """A linear whose whole weight is on every tensor-parallel rank, as Transformer Engine's down projections are."""

    def __init__(self, inputs: int, outputs: int, config: MLATransformerConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=config.params_dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return nn.functional.linear(x, self.weight), None

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        assert metadata is not None
        weights: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            {"weight": self.weight},
            prefix,
            {},
            sharded_offsets,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )
        return weights


class LatentAttention(MLASelfAttention):  # type: ignore[misc]
    """Multi-latent attention with replicated down projections."""

    def __init__(self, config: MLATransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = ReplicatedLinear(config.hidden_size, config.q_lora_rank, config)
        latent = config.kv_lora_rank + config.qk_pos_emb_head_dim
        self.linear_kv_down_proj = ReplicatedLinear(config.hidden_size, latent, config)


class CausalAttention(MegatronModule):  # type: ignore[misc]
    """Core attention over [tokens, batch, heads, dim]; upstream's own has no value width and no context parallelism.

    Context rank r of n holds chunks r and 2n-1-r of 2n; keys and values of all are gathered.
    """

    def __init__(self, config: MLATransformerConfig, *_: object, softmax_scale: float, **__: object) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        group = parallel_state.get_context_parallel_group()
        positions = torch.cat([context_positions(len(query), r, group.size()) for r in range(group.size())])
        mine = context_positions(len(query), group.rank(), group.size())
        mask = mine[:, None] >= positions[None, :]
        key, value = _gather(key, group), _gather(value, group)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return out.permute(2, 0, 1, 3).flatten(2)


def context_positions(local_tokens: int, rank: int, ranks: int) -> Tensor:
    """Positions in the whole sequence of the tokens that a context rank holds."""
    half = local_tokens // 2
    if ranks == 1:
        return torch.arange(local_tokens)
    first, second = rank * half, (2 * ranks - 1 - rank) * half
    return torch.cat([torch.arange(first, first + half), torch.arange(second, second + half)])


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1:
        return x
    out = x.new_empty((group.size() * len(x), *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous(), group=group)
    return out
