"""What a training micro-batch keeps on a GPU: saved layer inputs, the layer in work, and a chunk of logits."""

from __future__ import annotations

from dataclasses import dataclass
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
    layer = layer_elements(shape, topology, stage, tokens, shard)
    saved, moving = element * layer.saved, element * layer.moving
    saved_inputs, whole_layers = _kept_layers(config, stage.num_layers)
    inputs = in_flight * saved_inputs * shard * shape.hidden_size * element
    return parts(
        MemoryPart(
            "saved layer inputs", inputs, f"{in_flight} micro-batches x {saved_inputs} layers x {shard:,} tokens"
        ),
        MemoryPart("saved layers", in_flight * whole_layers * saved, f"{whole_layers} layers without recomputation"),
        MemoryPart("layer in work", _layers_in_work(config) * saved + moving, "what it saves, and what is on its way"),
        MemoryPart(
            "logits",
            logit_bytes(config, shape, topology, tokens, element) if stage.index == topology.pp - 1 else 0,
            f"{LOGIT_COPIES} x {config.perf.log_probs_chunk_size} tokens x vocabulary/TP x 4 B",
        ),
    )


@dataclass(frozen=True)
class LayerElements:
    """Numbers that the widest layer of a stage has on a GPU, besides its input."""

    attention: int
    """Saved by attention for its backward pass."""
    mlp: int
    """Saved by the experts, or by the dense MLP."""
    moving: int
    """Not saved, and there at the peak: tokens between two places, gradients, the gradient of the experts' weight."""

    @property
    def saved(self) -> int:
        """For the backward pass, by the whole layer."""
        return self.attention + self.mlp


def layer_elements(shape: ModelShape, topology: Topology, stage: Stage, tokens: int, shard: int) -> LayerElements:
    """What one layer needs. Counted from the modules, as they run on a GPU with fused norms and activations.

    tokens: of a rank before sequence parallelism divides them; shard: after. Keys and values are those of the whole
    context-parallel group; latents that were expanded into them are freed. The widest MLP of the stage counts.
    """
    heads, whole = shape.num_heads // topology.tp, topology.cp * tokens
    attention = heads * (shape.qk_head_dim + shape.v_head_dim) * (tokens + whole)
    attention += shard * (3 * shape.hidden_size + 2 * (shape.q_lora_rank or 0) + 2 * shape.latent_width)
    # Their gradients, and that of the expanded latents; or, before, those of a context rank's longest block of keys,
    # 7/8 of them at CP4, and a quarter that waits to be added. The experts' tensors are gone by then.
    gradients = heads * (shape.qk_head_dim + shape.v_head_dim) * (tokens + whole)
    expanded = heads * (shape.qk_nope_head_dim + shape.v_head_dim) * whole
    block = heads * (shape.qk_head_dim + shape.v_head_dim) * whole * 9 // 8 if topology.cp > 1 else 0
    gradients += max(expanded, block)
    dense = tokens * 3 * shape.intermediate_size // topology.tp if stage.num_dense_layers else 0
    moe, moving = _moe_elements(shape, topology, tokens, shard) if stage.num_moe_layers else (0, 0)
    mlp = max(dense, moe)
    return LayerElements(attention, mlp, max(moving, dense, gradients - mlp))


def dispatched_tokens(shape: ModelShape, shard: int) -> int:
    """Rows that a GPU sends, and on average receives, in one dispatch to the experts."""
    return shard * shape.num_experts_per_token


def logit_bytes(config: Config, shape: ModelShape, topology: Topology, tokens: int, element: int) -> int:
    """fp32 logits of one chunk on one vocabulary shard, their copies, and the gathered hidden states they come from."""
    chunk = min(config.perf.log_probs_chunk_size, tokens)
    hidden = tokens * shape.hidden_size * element
    return LOGIT_COPIES * FP32 * chunk * (shape.vocab_size // topology.tp) + hidden


def _moe_elements(shape: ModelShape, topology: Topology, tokens: int, shard: int) -> tuple[int, int]:
    """(saved, moving): rows of the experts, which enter as hidden states and leave as such.

    On its way is what was sent, what was received where that is not the same, what the experts made of it, and that
    in the order of the senders. The gradient of a weight is whole, in the parameters' dtype, before it is added up.
    """
    rows = dispatched_tokens(shape, shard)
    busiest = int(rows * EXPERT_IMBALANCE) if topology.ep > 1 else rows
    width = 3 * shape.moe_intermediate_size // topology.etp
    shared = tokens * 3 * shape.shared_intermediate_size // topology.tp
    copies = 3 if topology.ep > 1 else 2
    experts = shape.num_experts // topology.ep
    weight = experts * 2 * shape.moe_intermediate_size // topology.etp * shape.hidden_size
    return busiest * (shape.hidden_size + width) + shared, (rows + copies * busiest) * shape.hidden_size + weight


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
    """Layers that are computed again, and saved, at once; what is saved anyway counts elsewhere."""
    if config.perf.recompute_granularity != "full":
        return 0
    return 1 if config.perf.recompute_method == "block" else config.perf.recompute_num_layers or 1
