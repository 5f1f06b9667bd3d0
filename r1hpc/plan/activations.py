"""What a training micro-batch keeps on a GPU: saved layer inputs, the layer in work, and a chunk of logits."""

from __future__ import annotations

from math import ceil

from r1hpc.config import Config
from r1hpc.plan.assumptions import EXPERT_IMBALANCE, LOGIT_COPIES
from r1hpc.plan.batches import Batches
from r1hpc.plan.layers import Stage
from r1hpc.plan.memory import MemoryPart, parts
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import BF16, FP32
from r1hpc.plan.topology import Topology

PAD_TOKENS = 128
"""The packed stream of a rank is padded to a multiple of this times the tensor-parallel size."""


def local_tokens(config: Config, batches: Batches) -> int:
    """Tokens of a micro-batch on one context-parallel rank, padded."""
    multiple = PAD_TOKENS * config.perf.tensor_model_parallel_size
    return ceil(batches.tokens_per_gpu / multiple) * multiple


def activation_parts(
    config: Config, shape: ModelShape, topology: Topology, stage: Stage, batches: Batches
) -> tuple[MemoryPart, ...]:
    """Activations of a stage at its peak, in one-forward-one-backward order: stage i holds PP - i micro-batches."""
    tokens = local_tokens(config, batches)
    shard = tokens // topology.tp
    element = FP32 if config.megatron.params_dtype == "fp32" else BF16
    in_flight = topology.pp - stage.index
    layer = element * layer_elements(shape, topology, stage, tokens, shard)
    saved_inputs, whole_layers = _kept_layers(config, stage.num_layers)
    inputs = in_flight * saved_inputs * shard * shape.hidden_size * element
    return parts(
        MemoryPart(
            "saved layer inputs", inputs, f"{in_flight} micro-batches x {saved_inputs} layers x {shard:,} tokens"
        ),
        MemoryPart("saved layers", in_flight * whole_layers * layer, f"{whole_layers} layers without recomputation"),
        MemoryPart("layer in work", 2 * _layers_in_work(config) * layer, "activations and their gradients"),
        MemoryPart(
            "logits",
            logit_bytes(config, shape, topology, tokens, element) if stage.index == topology.pp - 1 else 0,
            f"{LOGIT_COPIES} x {config.perf.log_probs_chunk_size} tokens x vocabulary/TP x 4 B",
        ),
    )


def layer_elements(shape: ModelShape, topology: Topology, stage: Stage, tokens: int, shard: int) -> int:
    """Numbers that one layer saves for its backward pass.

    tokens: of a rank before sequence parallelism divides them; shard: after. Counted from the modules: latent
    attention with keys and values gathered over the context-parallel group, then the widest MLP of the stage.
    """
    heads = shape.num_heads // topology.tp
    kv_up = shape.qk_nope_head_dim + shape.v_head_dim
    gathered = topology.cp * heads * (shape.qk_head_dim + shape.v_head_dim)
    attention = tokens * (heads * (shape.qk_head_dim + kv_up + shape.v_head_dim) + gathered)
    attention += shard * (3 * shape.hidden_size + (shape.q_lora_rank or 0) + shape.latent_width)
    dense = tokens * 3 * shape.intermediate_size // topology.tp if stage.num_dense_layers else 0
    moe = _moe_elements(shape, topology, tokens, shard) if stage.num_moe_layers else 0
    return attention + max(dense, moe)


def dispatched_tokens(shape: ModelShape, shard: int) -> int:
    """Rows that a GPU sends, and on average receives, in one dispatch to the experts."""
    return shard * shape.num_experts_per_token


def logit_bytes(config: Config, shape: ModelShape, topology: Topology, tokens: int, element: int) -> int:
    """fp32 logits of one chunk on one vocabulary shard, their copies, and the gathered hidden states they come from."""
    chunk = min(config.perf.log_probs_chunk_size, tokens)
    hidden = tokens * shape.hidden_size * element
    return LOGIT_COPIES * FP32 * chunk * (shape.vocab_size // topology.tp) + hidden


def _moe_elements(shape: ModelShape, topology: Topology, tokens: int, shard: int) -> int:
    rows = dispatched_tokens(shape, shard)
    busiest = int(rows * EXPERT_IMBALANCE) if topology.ep > 1 else rows
    width = 2 * shape.hidden_size + 3 * shape.moe_intermediate_size // topology.etp
    shared = tokens * 3 * shape.shared_intermediate_size // topology.tp
    return busiest * width + 2 * rows * shape.hidden_size + shared


def _kept_layers(config: Config, layers: int) -> tuple[int, int]:
    """(layers whose input alone is kept, layers kept whole) of a stage under the recomputation settings."""
    perf = config.perf
    if perf.recompute_granularity != "full":
        return 0, layers
    chunk = perf.recompute_num_layers or 1
    if perf.recompute_method == "block":
        return min(chunk, layers), max(0, layers - chunk)
    return ceil(layers / chunk), 0


def _layers_in_work(config: Config) -> int:
    uniform = config.perf.recompute_granularity == "full" and config.perf.recompute_method != "block"
    return (config.perf.recompute_num_layers or 1) if uniform else 1
