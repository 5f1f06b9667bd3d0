"""Every matrix of the model by kind of module: parameters, bytes, and tensors of its Hugging Face checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.plan.model_shape import ModelShape

FP8, BF16, FP32 = 1, 2, 4
"""Bytes of one number."""


@dataclass(frozen=True)
class Matrix:
    """One weight matrix, [rows, columns] as the Hugging Face checkpoint stores it."""

    rows: int
    columns: int
    split: bool = True
    """Divided over tensor-parallel ranks; otherwise each holds a copy."""

    @property
    def size(self) -> int:
        """Its elements."""
        return self.rows * self.columns

    def scales(self, block: tuple[int, int]) -> int:
        """Its float32 scales when quantised in blocks of `block` rows and columns; the last ones may be partial."""
        return ceil(self.rows / block[0]) * ceil(self.columns / block[1])


@dataclass(frozen=True)
class Module:
    """The weights of one kind of module, once."""

    matrices: tuple[Matrix, ...] = ()
    norms: tuple[int, ...] = ()
    """Sizes of its norm vectors; on every tensor-parallel rank."""
    biases: tuple[int, ...] = ()
    """Sizes of its float32 buffers: the router's correction bias. Not counted as parameters."""
    quantized: bool = False
    """Stored in fp8 where the checkpoint is quantised."""

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        return sum(matrix.size for matrix in self.matrices) + sum(self.norms)

    def parameters_per_rank(self, tensor_parallel: int) -> int:
        """Trainable numbers that one tensor-parallel rank holds."""
        split = sum(matrix.size for matrix in self.matrices if matrix.split)
        return split // tensor_parallel + self.parameters - split

    def weight_bytes(self, fp8_block: tuple[int, int] | None, tensor_parallel: int = 1, element: int = BF16) -> int:
        """Bytes on one tensor-parallel rank: fp8 where `quantized` and a block is given, else `element` a number.

        Scales are left out (`scale_bytes`).
        """
        count = self.parameters_per_rank(tensor_parallel)
        biases = FP32 * sum(self.biases)
        if fp8_block is None or not self.quantized:
            return element * count + biases
        norms = sum(self.norms)
        return FP8 * (count - norms) + element * norms + biases

    def scale_bytes(self, fp8_block: tuple[int, int] | None) -> int:
        """Bytes of its float32 scales, unsplit; 0 where it is not quantised."""
        if fp8_block is None or not self.quantized:
            return 0
        return FP32 * sum(matrix.scales(fp8_block) for matrix in self.matrices)

    @property
    def tensors(self) -> int:
        """Tensors of the Hugging Face checkpoint, scales left out."""
        return len(self.matrices) + len(self.norms) + len(self.biases)


@dataclass(frozen=True)
class ModelModules:
    """The modules that a DeepSeek-V3 model is made of (arXiv:2412.19437), each once, and how often each occurs."""

    attention: Module
    """One layer: latent attention with its two norms."""
    layer_norms: Module
    """One layer: input norm and post-attention norm."""
    dense_mlp: Module
    router: Module
    shared: Module
    """The shared experts of one MoE layer together."""
    expert: Module
    """One routed expert."""
    embedding: Module
    head: Module
    final_norm: Module
    mtp_projection: Module
    """What a multi-token-prediction layer has besides a MoE layer: the joining matrix and three norms."""
    num_experts: int
    num_dense_layers: int
    num_moe_layers: int
    num_mtp_layers: int

    @property
    def dense_layer(self) -> tuple[tuple[Module, int], ...]:
        """One dense layer: its modules and how many of each."""
        return (self.attention, 1), (self.layer_norms, 1), (self.dense_mlp, 1)

    @property
    def moe_layer(self) -> tuple[tuple[Module, int], ...]:
        """One MoE layer: its modules and how many of each."""
        return (
            (self.attention, 1),
            (self.layer_norms, 1),
            (self.router, 1),
            (self.shared, 1),
            (self.expert, self.num_experts),
        )

    @property
    def main(self) -> tuple[tuple[Module, int], ...]:
        """The main model, without the multi-token-prediction layers."""
        dense = tuple((module, count * self.num_dense_layers) for module, count in self.dense_layer)
        moe = tuple((module, count * self.num_moe_layers) for module, count in self.moe_layer)
        return (*dense, *moe, (self.embedding, 1), (self.head, 1), (self.final_norm, 1))

    @property
    def mtp(self) -> tuple[tuple[Module, int], ...]:
        """The multi-token-prediction layers, without their copies of embedding and head."""
        layer = (*self.moe_layer, (self.mtp_projection, 1))
        return tuple((module, count * self.num_mtp_layers) for module, count in layer)

    @property
    def checkpoint(self) -> tuple[tuple[Module, int], ...]:
        """All that the Hugging Face checkpoint stores: each prediction layer repeats embedding and head."""
        copies = ((self.embedding, self.num_mtp_layers), (self.head, self.num_mtp_layers))
        return (*self.main, *self.mtp, *copies)


def total_parameters(modules: tuple[tuple[Module, int], ...]) -> int:
    """Trainable numbers of counted modules."""
    return sum(count * module.parameters for module, count in modules)


def total_bytes(modules: tuple[tuple[Module, int], ...], fp8_block: tuple[int, int] | None) -> int:
    """Bytes of counted modules as a checkpoint stores them: fp8 with scales, or bf16."""
    return sum(count * (m.weight_bytes(fp8_block) + m.scale_bytes(fp8_block)) for m, count in modules)


def model_modules(shape: ModelShape) -> ModelModules:
    """The modules of a model of this shape."""
    hidden = shape.hidden_size
    vocabulary = Module((Matrix(shape.vocab_size, hidden),))
    return ModelModules(
        attention=_attention(shape),
        layer_norms=Module(norms=(hidden, hidden)),
        dense_mlp=_gated_mlp(hidden, shape.intermediate_size),
        router=Module(
            (Matrix(shape.num_experts, hidden, split=False),),
            biases=(shape.num_experts,) if shape.router_bias else (),
        ),
        shared=_gated_mlp(hidden, shape.shared_intermediate_size) if shape.num_shared_experts else Module(),
        expert=_gated_mlp(hidden, shape.moe_intermediate_size),
        embedding=vocabulary,
        head=Module() if shape.tied_embeddings else vocabulary,
        final_norm=Module(norms=(hidden,)),
        mtp_projection=Module((Matrix(hidden, 2 * hidden),), norms=(hidden, hidden, hidden)),
        num_experts=shape.num_experts,
        num_dense_layers=shape.num_dense_layers,
        num_moe_layers=shape.num_moe_layers,
        num_mtp_layers=shape.num_mtp_layers,
    )


def _gated_mlp(hidden: int, width: int) -> Module:
    return Module((Matrix(width, hidden), Matrix(width, hidden), Matrix(hidden, width)), quantized=True)


def _attention(shape: ModelShape) -> Module:
    hidden, heads = shape.hidden_size, shape.num_heads
    kv = (
        Matrix(shape.latent_width, hidden, split=False),
        Matrix(heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank),
        Matrix(hidden, heads * shape.v_head_dim),
    )
    if shape.q_lora_rank is None:
        query = (Matrix(heads * shape.qk_head_dim, hidden),)
        return Module((*query, *kv), norms=(shape.kv_lora_rank,), quantized=True)
    low_rank = (Matrix(shape.q_lora_rank, hidden, split=False), Matrix(heads * shape.qk_head_dim, shape.q_lora_rank))
    return Module((*low_rank, *kv), norms=(shape.q_lora_rank, shape.kv_lora_rank), quantized=True)
