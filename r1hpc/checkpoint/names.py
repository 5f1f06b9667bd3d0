"""Every weight of a DeepSeek-V3 model: its Hugging Face name, its Megatron key, its place in it. One table, both ways.

Megatron's keys are those of its torch_dist checkpoints (`sharded_state_dict`), not of its modules: the experts of a
layer are one tensor [experts, rows, columns], gate and up are the two halves of one linear_fc1. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from r1hpc.plan.model_shape import ModelShape


class Where(Enum):
    """Which layers have a weight."""

    MODEL = "model"
    LAYER = "every layer"
    DENSE = "layers with a dense MLP"
    MOE = "layers with experts"
    EXPERT = "each expert of a layer"
    MTP = "multi-token-prediction layers"


@dataclass(frozen=True)
class Weight:
    """One row of the table. Names within a layer are relative to it; sizes are those of `_sizes`."""

    where: Where
    hf: str
    key: str
    """Empty for a copy: it has no tensor of its own in Megatron."""
    shape: tuple[str, ...]
    split: int | None = None
    """Axis that tensor parallelism splits."""
    half: int | None = None
    """0 or 1: upper or lower half of the rows of a Megatron tensor that joins two."""
    quantized: bool = False
    """In 128x128 blocks of fp8 where the checkpoint is quantized."""
    float32: bool = False
    """Stays float32 whatever the model's dtype: a buffer that Megatron keeps so."""
    te_key: str | None = None
    """Megatron's key with Transformer Engine's spec, which fuses a norm into the linear after it."""
    copy_of: str | None = None
    """Name of the model's tensor that this one repeats."""
    needs: str | None = None
    """Size that must not be 0 for the weight to exist."""


_ATTENTION = "self_attn.", "self_attention."


def _attention(
    hf: str, key: str, shape: tuple[str, ...], split: int | None, te_key: str | None = None, needs: str | None = None
) -> Weight:
    a, b = _ATTENTION
    te = b + te_key if te_key else None
    return Weight(Where.LAYER, a + hf, b + key, shape, split, quantized=len(shape) == 2, te_key=te, needs=needs)


def _gated_mlp(where: Where, hf: str, key: str, width: str, split: bool = True) -> tuple[Weight, ...]:
    row, column = (0, 1) if split else (None, None)
    fc1, fc2 = f"{key}linear_fc1.weight", f"{key}linear_fc2.weight"
    up, down = (width, "hidden"), ("hidden", width)
    return (
        Weight(where, f"{hf}gate_proj.weight", fc1, up, row, half=0, quantized=True, needs=width),
        Weight(where, f"{hf}up_proj.weight", fc1, up, row, half=1, quantized=True, needs=width),
        Weight(where, f"{hf}down_proj.weight", fc2, down, column, quantized=True, needs=width),
    )


WEIGHTS: tuple[Weight, ...] = (
    Weight(Where.MODEL, "model.embed_tokens.weight", "embedding.word_embeddings.weight", ("vocab", "hidden"), 0),
    Weight(Where.LAYER, "input_layernorm.weight", "input_layernorm.weight", ("hidden",)),
    _attention("q_proj.weight", "linear_q_proj.weight", ("heads*qk", "hidden"), 0, needs="full_q"),
    _attention("q_a_proj.weight", "linear_q_down_proj.weight", ("q_lora", "hidden"), None, needs="q_lora"),
    _attention(
        "q_a_layernorm.weight", "q_layernorm.weight", ("q_lora",), None, "linear_q_up_proj.layer_norm_weight", "q_lora"
    ),
    _attention("q_b_proj.weight", "linear_q_up_proj.weight", ("heads*qk", "q_lora"), 0, needs="q_lora"),
    _attention("kv_a_proj_with_mqa.weight", "linear_kv_down_proj.weight", ("kv_lora+rope", "hidden"), None),
    _attention(
        "kv_a_layernorm.weight", "kv_layernorm.weight", ("kv_lora",), None, "linear_kv_up_proj.layer_norm_weight"
    ),
    _attention("kv_b_proj.weight", "linear_kv_up_proj.weight", ("heads*(nope+v)", "kv_lora"), 0),
    _attention("o_proj.weight", "linear_proj.weight", ("hidden", "heads*v"), 1),
    Weight(
        Where.DENSE,
        "post_attention_layernorm.weight",
        "pre_mlp_layernorm.weight",
        ("hidden",),
        te_key="mlp.linear_fc1.layer_norm_weight",
    ),
    *_gated_mlp(Where.DENSE, "mlp.", "mlp.", "dense"),
    Weight(Where.MOE, "post_attention_layernorm.weight", "pre_mlp_layernorm.weight", ("hidden",)),
    Weight(Where.MOE, "mlp.gate.weight", "mlp.router.weight", ("experts", "hidden")),
    Weight(
        Where.MOE,
        "mlp.gate.e_score_correction_bias",
        "mlp.router.expert_bias",
        ("experts",),
        float32=True,
        needs="router_bias",
    ),
    *_gated_mlp(Where.MOE, "mlp.shared_experts.", "mlp.shared_experts.", "shared"),
    # "experts" twice: the module is MoELayer.experts, and its own checkpoint prefix says so again.
    *_gated_mlp(Where.EXPERT, "mlp.experts.{expert}.", "mlp.experts.experts.", "expert", split=False),
    Weight(Where.MTP, "embed_tokens.weight", "", ("vocab", "hidden"), copy_of="model.embed_tokens.weight"),
    Weight(Where.MTP, "enorm.weight", "enorm.weight", ("hidden",)),
    Weight(Where.MTP, "hnorm.weight", "hnorm.weight", ("hidden",)),
    Weight(Where.MTP, "eh_proj.weight", "eh_proj.weight", ("hidden", "2*hidden"), 0),
    Weight(Where.MTP, "shared_head.norm.weight", "final_layernorm.weight", ("hidden",)),
    Weight(Where.MTP, "shared_head.head.weight", "", ("vocab", "hidden"), copy_of="lm_head.weight", needs="untied"),
    Weight(Where.MODEL, "model.norm.weight", "decoder.final_layernorm.weight", ("hidden",)),
    Weight(Where.MODEL, "lm_head.weight", "output_layer.weight", ("vocab", "hidden"), 0, needs="untied"),
)
"""DeepSeek-V3 and R1 as released (arXiv:2412.19437), and Megatron-core 0.16 to 0.19."""

IGNORED_HF_SUFFIXES = (".rotary_emb.inv_freq",)
"""Tensors that some checkpoints carry and that are computed, not stored."""


@dataclass(frozen=True)
class TensorName:
    """One tensor of a Hugging Face checkpoint and the box of the Megatron tensor that it fills."""

    hf: str
    shape: tuple[int, ...]
    key: str
    """torch_dist key with the portable spec; of a copy, that of the tensor it repeats."""
    te_key: str | None
    """The key where Transformer Engine's spec names it differently."""
    global_shape: tuple[int, ...]
    """Of the Megatron tensor: [experts, rows, columns] for experts."""
    offset: tuple[int, ...]
    """Where the box begins."""
    split_axis: int | None
    """Axis of the Hugging Face tensor that tensor parallelism splits."""
    quantized: bool
    float32: bool
    copy_of: str | None
    """Hugging Face name of the tensor that this one repeats."""
    layer: int | None
    """Number in the Hugging Face checkpoint; null for embedding, final norm and head."""
    expert: int | None

    @property
    def box(self) -> tuple[int, ...]:
        """Sizes of the box in the Megatron tensor."""
        return (1,) * (len(self.global_shape) - len(self.shape)) + self.shape


def tensors(shape: ModelShape) -> tuple[TensorName, ...]:
    """Every tensor of the Hugging Face checkpoint of a model of this shape, layer by layer; scales left out."""
    sizes = _sizes(shape)
    found = [_name(weight, sizes, "", "", None, None) for weight in _rows(sizes, Where.MODEL)]
    for layer in range(shape.num_layers + shape.num_mtp_layers):
        found += _layer(shape, sizes, layer)
    return tuple(found)


def extra_state_keys(shape: ModelShape) -> tuple[str, ...]:
    """Keys of the empty `_extra_state` objects that Megatron's linears ask for when they load."""
    keys: list[str] = []
    experts = shape.num_experts
    for layer in range(shape.num_layers + shape.num_mtp_layers):
        _, prefix = _prefixes(shape, layer)
        query = ("linear_q_proj",) if shape.q_lora_rank is None else ("linear_q_down_proj", "linear_q_up_proj")
        linears = [
            f"self_attention.{name}" for name in (*query, "linear_kv_down_proj", "linear_kv_up_proj", "linear_proj")
        ]
        if layer < shape.num_dense_layers:
            linears += ["mlp.linear_fc1", "mlp.linear_fc2"]
        elif shape.num_shared_experts:
            linears += ["mlp.shared_experts.linear_fc1", "mlp.shared_experts.linear_fc2"]
        keys += [f"{prefix}{name}._extra_state/shard_0_1" for name in linears]
        if layer >= shape.num_dense_layers:
            keys += [
                f"{prefix}mlp.experts.experts.{name}._extra_state/shard_{expert}_{experts}"
                for expert in range(experts)
                for name in ("linear_fc1", "linear_fc2")
            ]
        if layer >= shape.num_layers:
            keys.append(f"mtp.layers.{layer - shape.num_layers}.eh_proj._extra_state/shard_0_1")
    return tuple(keys)


def by_key(names: tuple[TensorName, ...]) -> Mapping[str, tuple[TensorName, ...]]:
    """The Hugging Face tensors that each Megatron tensor is made of; copies left out."""
    found: dict[str, list[TensorName]] = {}
    for name in names:
        if name.copy_of is None:
            found.setdefault(name.key, []).append(name)
    return {key: tuple(parts) for key, parts in found.items()}


def _sizes(shape: ModelShape) -> dict[str, int]:
    """The table's words for sizes; a word for a part that the model lacks is 0."""
    heads = shape.num_heads
    return {
        "vocab": shape.vocab_size,
        "hidden": shape.hidden_size,
        "2*hidden": 2 * shape.hidden_size,
        "q_lora": shape.q_lora_rank or 0,
        "full_q": int(shape.q_lora_rank is None),
        "kv_lora": shape.kv_lora_rank,
        "kv_lora+rope": shape.kv_lora_rank + shape.qk_rope_head_dim,
        "heads*qk": heads * shape.qk_head_dim,
        "heads*(nope+v)": heads * (shape.qk_nope_head_dim + shape.v_head_dim),
        "heads*v": heads * shape.v_head_dim,
        "dense": shape.intermediate_size,
        "experts": shape.num_experts,
        "expert": shape.moe_intermediate_size,
        "shared": shape.shared_intermediate_size,
        "router_bias": int(shape.router_bias),
        "untied": int(not shape.tied_embeddings),
    }


def _rows(sizes: Mapping[str, int], *where: Where) -> Iterator[Weight]:
    for weight in WEIGHTS:
        if weight.where in where and (weight.needs is None or sizes[weight.needs]):
            yield weight


def _prefixes(shape: ModelShape, layer: int) -> tuple[str, str]:
    """What a layer's names begin with: in the Hugging Face checkpoint, in Megatron's."""
    if layer < shape.num_layers:
        return f"model.layers.{layer}.", f"decoder.layers.{layer}."
    return f"model.layers.{layer}.", f"mtp.layers.{layer - shape.num_layers}.transformer_layer."


def _layer(shape: ModelShape, sizes: Mapping[str, int], layer: int) -> Iterator[TensorName]:
    hf, key = _prefixes(shape, layer)
    kind = Where.DENSE if layer < shape.num_dense_layers else Where.MOE
    for weight in _rows(sizes, Where.LAYER, kind):
        yield _name(weight, sizes, hf, key, layer, None)
    if kind is Where.MOE:
        for expert in range(shape.num_experts):
            for weight in _rows(sizes, Where.EXPERT):
                yield _name(weight, sizes, hf, key, layer, expert)
    if layer >= shape.num_layers:
        for weight in _rows(sizes, Where.MTP):
            yield _name(weight, sizes, hf, f"mtp.layers.{layer - shape.num_layers}.", layer, None)


def _name(
    weight: Weight, sizes: Mapping[str, int], hf: str, key: str, layer: int | None, expert: int | None
) -> TensorName:
    shape = tuple(sizes[word] for word in weight.shape)
    rows = shape[0] * (1 if weight.half is None else 2)
    lead = () if expert is None else (sizes["experts"],)
    first = () if expert is None else (expert,)
    return TensorName(
        hf=hf + weight.hf.format(expert=expert),
        shape=shape,
        key=_KEY_OF_COPIED[weight.copy_of] if weight.copy_of else key + weight.key,
        te_key=key + weight.te_key if weight.te_key else None,
        global_shape=(*lead, rows, *shape[1:]),
        offset=(*first, (weight.half or 0) * shape[0], *(0 for _ in shape[1:])),
        split_axis=weight.split,
        quantized=weight.quantized,
        float32=weight.float32,
        copy_of=weight.copy_of,
        layer=layer,
        expert=expert,
    )


_KEY_OF_COPIED = {weight.hf: weight.key for weight in WEIGHTS if weight.where is Where.MODEL}
