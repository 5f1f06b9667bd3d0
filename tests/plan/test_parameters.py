"""Counts of parameters, bytes and tensors, against a list of every tensor of the Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil, prod

import pytest

from r1hpc.plan import ModelShape
from r1hpc.plan.parameters import model_modules, total_bytes, total_parameters


def tensors(shape: ModelShape, *, mtp: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight, as DeepSeek's own modelling code names them."""
    hidden = shape.hidden_size
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape.vocab_size, hidden)
    for layer in range(shape.num_layers + (shape.num_mtp_layers if mtp else 0)):
        base = f"model.layers.{layer}"
        yield f"{base}.input_layernorm.weight", (hidden,)
        yield f"{base}.post_attention_layernorm.weight", (hidden,)
        yield from attention(shape, f"{base}.self_attn")
        if layer < shape.num_dense_layers:
            yield from mlp(f"{base}.mlp", hidden, shape.intermediate_size)
        else:
            yield f"{base}.mlp.gate.weight", (shape.num_experts, hidden)
            yield f"{base}.mlp.gate.e_score_correction_bias", (shape.num_experts,)
            yield from mlp(f"{base}.mlp.shared_experts", hidden, shape.moe_intermediate_size * shape.num_shared_experts)
            for expert in range(shape.num_experts):
                yield from mlp(f"{base}.mlp.experts.{expert}", hidden, shape.moe_intermediate_size)
        if layer >= shape.num_layers:
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                yield f"{base}.{norm}.weight", (hidden,)
            yield f"{base}.eh_proj.weight", (hidden, 2 * hidden)
            yield f"{base}.embed_tokens.weight", (shape.vocab_size, hidden)
            yield f"{base}.shared_head.head.weight", (shape.vocab_size, hidden)


def attention(shape: ModelShape, base: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, head = shape.hidden_size, shape.num_heads, shape.qk_nope_head_dim + shape.qk_rope_head_dim
    if shape.q_lora_rank is None:
        yield f"{base}.q_proj.weight", (heads * head, hidden)
    else:
        yield f"{base}.q_a_proj.weight", (shape.q_lora_rank, hidden)
        yield f"{base}.q_a_layernorm.weight", (shape.q_lora_rank,)
        yield f"{base}.q_b_proj.weight", (heads * head, shape.q_lora_rank)
    yield f"{base}.kv_a_proj_with_mqa.weight", (shape.kv_lora_rank + shape.qk_rope_head_dim, hidden)
    yield f"{base}.kv_a_layernorm.weight", (shape.kv_lora_rank,)
    yield f"{base}.kv_b_proj.weight", (heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank)
    yield f"{base}.o_proj.weight", (hidden, heads * shape.v_head_dim)


def mlp(base: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{base}.gate_proj.weight", (width, hidden)
    yield f"{base}.up_proj.weight", (width, hidden)
    yield f"{base}.down_proj.weight", (hidden, width)


def is_quantized(name: str) -> bool:
    return name.endswith(("proj.weight", "proj_with_mqa.weight")) and "eh_proj" not in name


def stored_bytes(name: str, size: tuple[int, ...], fp8: bool) -> int:
    if name.endswith("e_score_correction_bias"):
        return 4 * prod(size)
    if fp8 and is_quantized(name):
        return prod(size) + 4 * ceil(size[0] / 128) * ceil(size[1] / 128)
    return 2 * prod(size)


@pytest.fixture(params=["r1", "tiny", "full-rank queries"])
def shape(request: pytest.FixtureRequest, r1_shape: ModelShape, tiny_shape: ModelShape) -> ModelShape:
    shapes = {"r1": r1_shape, "tiny": tiny_shape, "full-rank queries": replace(tiny_shape, q_lora_rank=None)}
    return shapes[request.param]


def test_parameters_are_those_of_the_tensors(shape: ModelShape) -> None:
    modules = model_modules(shape)
    listed = {name: size for name, size in tensors(shape, mtp=False) if not name.endswith("bias")}
    assert total_parameters(modules.main) == sum(map(prod, listed.values()))


@pytest.mark.parametrize("fp8", [True, False])
def test_checkpoint_bytes_are_those_of_the_tensors(shape: ModelShape, fp8: bool) -> None:
    modules = model_modules(shape)
    block = shape.fp8_block if fp8 else None
    main = sum(stored_bytes(name, size, fp8) for name, size in tensors(shape, mtp=False))
    everything = sum(stored_bytes(name, size, fp8) for name, size in tensors(shape, mtp=True))
    assert total_bytes(modules.main, block) == main
    assert total_bytes(modules.checkpoint, block) == everything


def test_tensor_counts_are_those_of_the_list(shape: ModelShape) -> None:
    modules = model_modules(shape)
    everything = list(tensors(shape, mtp=True))
    assert sum(count * module.tensors for module, count in modules.checkpoint) == len(everything)
    quantized = sum(count * len(module.matrices) for module, count in modules.checkpoint if module.quantized)
    assert quantized == sum(is_quantized(name) for name, _ in everything)


def test_tensor_parallel_ranks_share_split_matrices_and_repeat_the_others(tiny_shape: ModelShape) -> None:
    attention_module = model_modules(tiny_shape).attention
    # q_a 64*128 + kv_a 80*128 + norms 64+64 whole; q_b 192*64 + kv_b 256*64 + o 128*128 halved
    whole, halved = 64 * 128 + 80 * 128 + 128, 192 * 64 + 256 * 64 + 128 * 128
    assert attention_module.parameters == whole + halved
    assert attention_module.parameters_per_rank(2) == whole + halved // 2
