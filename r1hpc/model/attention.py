"""Multi-latent self-attention of DeepSeek-V3 (arXiv:2405.04434 section 2.1), over packed sequences only.

Our own module rather than megatron-core's: without Transformer Engine that one has no packed sequences and no context
parallelism, and its gradient of the rotary key misses the heads of the other tensor-parallel ranks.

What crosses the context-parallel ranks is the latent: kv_lora_rank + rotary width numbers a token (576 for R1), where
expanded keys and values are heads * (key width + value width) on each tensor-parallel rank (16 * 320 = 5,120 at TP8).
Expanding the tokens of the other ranks again is the price: at R1 and TP8, 2 * 512 * 16 * 256 = 4.2 MFLOP a token,
against 9,088 bytes not received; at 500 TFLOP/s and 50 GB/s, 8 ns against 182 ns. And one collective does both
parallelisms: each rank holds T / TP tokens of the sequence-parallel shard, so that gathering over the tensor and
context ranks together lets every latent enter a node once, not once a GPU, and the sum in its backward pass is over
the heads of all tensor ranks, which makes the gradient of the rotary key, shared by all heads, whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import MLATransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from r1hpc.model.context_attention import packed_attention
from r1hpc.model.gather_tokens import gather_tokens
from r1hpc.model.linear import ReplicatedLinear
from r1hpc.model.norm import RMSNorm
from r1hpc.model.packed import PackedSequences
from r1hpc.model.rotary import Rotary, RotaryTable, rotary_table, rotate


class LatentAttention(MegatronModule):  # type: ignore[misc]
    """The `self_attention` of a TransformerLayer. Parameters have the names of megatron-core's MLASelfAttention.

    Sequence-parallel iff TP > 1: hidden states are [T / TP, 1, hidden], T the tokens of the context rank.
    Selective recomputation of "mla_up_proj" keeps the latents alone and computes queries, keys, values and attention
    again; "core_attn" would save nothing, as no scores are kept.
    """

    def __init__(
        self, config: MLATransformerConfig, layer_number: int, pg_collection: ProcessGroupCollection, **_: object
    ) -> None:
        super().__init__(config=config)
        assert config.attention_dropout == 0, f"attention_dropout is {config.attention_dropout}: there is none here"
        assert not config.add_bias_linear, "add_bias_linear: DeepSeek-V3 has no biases"
        self.layer_number = layer_number
        self.tp_group = pg_collection.tp
        self.latent_group = pg_collection.tp_cp
        self.tp_rank, self.tp_size = pg_collection.tp.rank(), pg_collection.tp.size()
        assert config.sequence_parallel == (self.tp_size > 1), "sequence parallelism goes with TP > 1, and only with it"
        _check_rank_order(pg_collection)
        self.heads = config.num_attention_heads // self.tp_size
        self.rotary = Rotary.of(config)
        query_width = config.qk_head_dim + config.qk_pos_emb_head_dim
        self.scale = self.rotary.softmax_factor / math.sqrt(query_width)
        self.recompute = config.recompute_granularity == "selective" and "mla_up_proj" in config.recompute_modules

        queries = config.num_attention_heads * query_width
        if config.q_lora_rank is None:
            self.linear_q_proj = _column_parallel(config.hidden_size, queries, config, self.tp_group)
        else:
            self.linear_q_down_proj = ReplicatedLinear(config.hidden_size, config.q_lora_rank, config)
            self.q_layernorm = RMSNorm(config, config.q_lora_rank, eps=config.layernorm_epsilon)
            self.linear_q_up_proj = _column_parallel(config.q_lora_rank, queries, config, self.tp_group)
        latent_width = config.kv_lora_rank + config.qk_pos_emb_head_dim
        self.linear_kv_down_proj = ReplicatedLinear(config.hidden_size, latent_width, config)
        self.kv_layernorm = RMSNorm(config, config.kv_lora_rank, eps=config.layernorm_epsilon)
        expanded = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
        self.linear_kv_up_proj = _column_parallel(config.kv_lora_rank, expanded, config, self.tp_group, gathered=True)
        self.linear_proj = _row_parallel(
            config.num_attention_heads * config.v_head_dim, config.hidden_size, config, self.tp_group
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        *,
        packed_seq_params: PackedSequences,
        **unused: object,
    ) -> tuple[Tensor, None]:
        """([T / TP, 1, hidden], no bias). Collective over the tensor and context ranks.

        packed_seq_params: the sequences, ours. The layer passes more, for inference and masks: all of it null.
        """
        table = rotary_table(self.rotary, packed_seq_params)
        query, latent = self._query_latent(hidden_states), self._latent(hidden_states, table)

        def attend(query: Tensor, latent: Tensor) -> Tensor:
            return self._attend(query, latent, packed_seq_params, table)

        attended = tensor_parallel.checkpoint(attend, False, query, latent) if self.recompute else attend(query, latent)
        out, _ = self.linear_proj(attended.flatten(1).unsqueeze(1))
        return out, None

    def _query_latent(self, hidden_states: Tensor) -> Tensor:
        """[T / TP, 1, q_lora_rank]: what queries are made from; the hidden states of a model without that rank."""
        if self.config.q_lora_rank is None:
            return hidden_states
        down, _ = self.linear_q_down_proj(hidden_states)
        return self.q_layernorm(down)  # type: ignore[no-any-return]

    def _latent(self, hidden_states: Tensor, table: RotaryTable) -> Tensor:
        """[T / TP, kv_lora_rank + rotary]: what this shard's keys and values are made from, rotary key rotated."""
        down, _ = self.linear_kv_down_proj(hidden_states)
        latent, rotary_key = self._split_latent(down.squeeze(1))
        begin = self.tp_rank * len(latent)
        mine = table.rows(begin, begin + len(latent))
        return torch.cat([self.kv_layernorm(latent), rotate(rotary_key, mine)], -1)

    def _attend(self, query: Tensor, latent: Tensor, sequences: PackedSequences, table: RotaryTable) -> Tensor:
        """[T, H, value width] of this rank's heads."""
        whole = gather_tokens(latent, self.latent_group, sequences.gathered_order)
        key, value = self._key_value(whole)
        return packed_attention(self._query(query, table), key, value, sequences, self.scale)

    def _query(self, latent: Tensor, table: RotaryTable) -> Tensor:
        """[T, H, key width] from the shard of the query latent; the projection gathers it over the tensor ranks."""
        project = self.linear_q_proj if self.config.q_lora_rank is None else self.linear_q_up_proj
        query = project(latent)[0].squeeze(1).unflatten(-1, (self.heads, -1))
        plain, rotary = query.split([self.config.qk_head_dim, self.config.qk_pos_emb_head_dim], -1)
        return torch.cat([plain, rotate(rotary, table)], -1)

    def _key_value(self, whole: Tensor) -> tuple[Tensor, Tensor]:
        """([W, H, key width], [W, H, value width]) from the latents of the whole sequences."""
        latent, rotary_key = self._split_latent(whole)
        expanded = self.linear_kv_up_proj(latent)[0].unflatten(-1, (self.heads, -1))
        plain, value = expanded.split([self.config.qk_head_dim, self.config.v_head_dim], -1)
        rotary_keys = rotary_key.unsqueeze(1).expand(-1, self.heads, -1)
        # A copy of the values, so that the expanded latents are freed once the keys are joined.
        return torch.cat([plain, rotary_keys], -1), value.contiguous()

    def _split_latent(self, latent: Tensor) -> tuple[Tensor, ...]:
        return torch.split(latent, [self.config.kv_lora_rank, self.config.qk_pos_emb_head_dim], -1)


def _check_rank_order(groups: ProcessGroupCollection) -> None:
    """Tensor ranks must be neighbors among the tensor and context ranks: gathered shards are then in token order."""
    tp, cp, both = groups.tp, groups.cp, groups.tp_cp
    assert both.rank() == cp.rank() * tp.size() + tp.rank(), (
        f"rank {both.rank()} of the tensor and context ranks is tensor rank {tp.rank()} of {tp.size()} and context rank"
        f" {cp.rank()}: the order of the parallelisms must begin with tp, cp"
    )


def _column_parallel(
    inputs: int, outputs: int, config: MLATransformerConfig, group: Any, gathered: bool = False
) -> ColumnParallelLinear:
    """gathered: the input comes whole, and whoever gathered it sums its gradient: no communication in the linear."""
    linear = ColumnParallelLinear(
        inputs,
        outputs,
        config=config,
        init_method=config.init_method,
        bias=False,
        gather_output=False,
        disable_grad_reduce=gathered,
        tp_group=group,
    )
    linear.sequence_parallel = linear.sequence_parallel and not gathered
    return linear


def _row_parallel(inputs: int, outputs: int, config: MLATransformerConfig, group: Any) -> RowParallelLinear:
    return RowParallelLinear(
        inputs,
        outputs,
        config=config,
        init_method=config.output_layer_init_method,
        bias=False,
        input_is_parallel=True,
        skip_bias_add=False,
        tp_group=group,
    )
