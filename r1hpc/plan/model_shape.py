"""The sizes of a model, read from its Hugging Face config.json. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from r1hpc.errors import ProblemsError

SUPPORTED_MODEL_TYPES = ("deepseek_v3",)


class ModelShapeError(ProblemsError):
    """A config.json that does not describe a model of the DeepSeek-V3 family; each problem names the file."""

    heading = "model problem"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a DeepSeek-V3 model: multi-head latent attention, dense layers first, then mixtures of experts."""

    hidden_size: int
    num_layers: int
    num_dense_layers: int
    """The first layers, which carry a dense MLP: first_k_dense_replace."""
    num_mtp_layers: int
    """Multi-token-prediction layers stored after the main ones; training builds none of them."""
    num_heads: int
    q_lora_rank: int | None
    """null: queries come from one full projection."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    intermediate_size: int
    """Width of a dense MLP."""
    moe_intermediate_size: int
    """Width of one expert."""
    num_experts: int
    num_experts_per_token: int
    num_shared_experts: int
    router_bias: bool
    """A float32 correction bias per expert (topk_method noaux_tc)."""
    vocab_size: int
    tied_embeddings: bool
    max_positions: int
    fp8_block: tuple[int, int] | None
    """Rows and columns of a quantisation block; null: the checkpoint is not quantised."""

    @property
    def num_moe_layers(self) -> int:
        """Layers with experts."""
        return self.num_layers - self.num_dense_layers

    @property
    def qk_head_dim(self) -> int:
        """Width of a query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def shared_intermediate_size(self) -> int:
        """Width of the shared experts taken together."""
        return self.moe_intermediate_size * self.num_shared_experts

    @property
    def latent_width(self) -> int:
        """Numbers that a token leaves in the cache of a layer: the latent and the rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim


def read_model_shape(path: Path) -> ModelShape:
    """The shape in `path`, a config.json or a directory that holds one.

    Raises ModelShapeError naming the file and every key that is missing or wrong.
    """
    file = path
    try:
        # Behind a closed directory is_dir raises where it might answer no.
        file = path / "config.json" if path.is_dir() else path
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelShapeError([f"{file}: cannot be read ({error.strerror}); give the model's config.json"]) from error
    except ValueError as error:
        raise ModelShapeError([f"{file}: is not JSON ({error})"]) from error
    if not isinstance(values, dict):
        raise ModelShapeError([f"{file}: holds a {type(values).__name__}; a config.json is one JSON object"])
    return model_shape(values, file)


def model_shape(values: Mapping[str, Any], file: Path) -> ModelShape:
    """The shape that the values of a config.json describe; `file` is where they come from, for the errors.

    Raises ModelShapeError naming the file and every key that is missing or wrong.
    """
    reader = _Reader(values)
    reader.expect("model_type", SUPPORTED_MODEL_TYPES)
    reader.expect("moe_layer_freq", (1,), default=1)
    reader.expect("attention_bias", (False,), default=False)
    shape = ModelShape(
        hidden_size=reader.size("hidden_size"),
        num_layers=reader.size("num_hidden_layers"),
        num_dense_layers=reader.size("first_k_dense_replace", least=0),
        num_mtp_layers=reader.size("num_nextn_predict_layers", least=0, default=0),
        num_heads=reader.size("num_attention_heads"),
        q_lora_rank=reader.size("q_lora_rank") if values.get("q_lora_rank") is not None else None,
        kv_lora_rank=reader.size("kv_lora_rank"),
        qk_nope_head_dim=reader.size("qk_nope_head_dim"),
        qk_rope_head_dim=reader.size("qk_rope_head_dim"),
        v_head_dim=reader.size("v_head_dim"),
        intermediate_size=reader.size("intermediate_size"),
        moe_intermediate_size=reader.size("moe_intermediate_size"),
        num_experts=reader.size("n_routed_experts"),
        num_experts_per_token=reader.size("num_experts_per_tok"),
        num_shared_experts=reader.size("n_shared_experts", least=0, default=0),
        router_bias=values.get("topk_method") == "noaux_tc",
        vocab_size=reader.size("vocab_size"),
        tied_embeddings=values.get("tie_word_embeddings") is True,
        max_positions=reader.size("max_position_embeddings"),
        fp8_block=reader.fp8_block(),
    )
    if shape.num_dense_layers > shape.num_layers:
        reader.problems.append(
            f"first_k_dense_replace is {shape.num_dense_layers}, more than num_hidden_layers = {shape.num_layers}"
        )
    if reader.problems:
        raise ModelShapeError([f"{file}: {problem}" for problem in reader.problems])
    return shape


class _Reader:
    """Reads keys and gathers every problem instead of stopping at the first."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []

    def expect(self, key: str, accepted: tuple[object, ...], default: object = None) -> None:
        value = self.values.get(key, default)
        if value not in accepted:
            self.problems.append(f"{key} is {value!r}; supported: {', '.join(map(repr, accepted))}")

    def size(self, key: str, least: int = 1, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            self.problems.append(f"{key} is missing")
            return least
        if not _is_size(value, least):
            self.problems.append(f"{key} is {value!r}; it must be a whole number of at least {least}")
            return least
        return value

    def fp8_block(self) -> tuple[int, int] | None:
        quantization = self.values.get("quantization_config")
        if quantization is None:
            return None
        if not isinstance(quantization, dict):
            self.problems.append(f"quantization_config is {quantization!r}; it must be an object, or left out")
            return None
        method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
        if method != "fp8" or not isinstance(block, list) or len(block) != 2 or not all(map(_is_size, block)):
            self.problems.append(
                f"quantization_config has quant_method {method!r} and weight_block_size {block!r};"
                " supported: fp8 with a block of two sizes of at least 1, or none"
            )
            return None
        return block[0], block[1]


def _is_size(value: object, least: int = 1) -> TypeGuard[int]:
    """Whether a JSON value is a whole number of at least `least`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
