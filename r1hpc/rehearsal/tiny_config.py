"""The config.json of a tiny model: a given one with some of its values set anew, and checked. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.fp8_format import BLOCK, QUANTIZATION
from r1hpc.config.nearest import nearest
from r1hpc.errors import ConfigError
from r1hpc.plan.model_shape import ModelShape, model_shape

TINY_R1 = Path(__file__).resolve().parents[2] / "configs/models/tiny-r1/config.json"
"""The model of the rehearsal."""

_FP8_BLOCK = (BLOCK, BLOCK)


def tiny_config(file: Path, overrides: Mapping[str, Any], *, mtp: bool, fp8: bool) -> dict[str, Any]:
    """The values of `file` with `overrides` over them, with or without multi-token prediction and fp8.

    Raises ConfigError with every override that is wrong, ModelShapeError where `file` is no config of the family.
    """
    values = _read(file)
    problems = [problem for key, value in overrides.items() for problem in _override_problems(values, key, value)]
    if problems:
        raise ConfigError(problems)
    values |= overrides
    if not mtp:
        values["num_nextn_predict_layers"] = 0
    if fp8:
        values.setdefault("quantization_config", QUANTIZATION)
    else:
        values.pop("quantization_config", None)
    problems = [f"{file}: {problem}" for problem in _architecture_problems(values, model_shape(values, file))]
    if problems:
        raise ConfigError(problems)
    return values


def read_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Values of KEY=VALUE words, each VALUE a JSON value or else a text. Raises ConfigError for a word without "="."""
    problems = [f"--set {word}: is written --set key=value" for word in words if "=" not in word]
    if problems:
        raise ConfigError(problems)
    return {key: _json_or_text(text) for key, _, text in (word.partition("=") for word in words)}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"{file}: cannot be read ({error.strerror}); give a model's config.json with --config"
        raise ConfigError([problem]) from error
    except ValueError as error:
        raise ConfigError([f"{file}: is not JSON ({error})"]) from error
    if not isinstance(values, dict):
        raise ConfigError([f"{file}: holds a {type(values).__name__}; a config.json is one JSON object"])
    return values


def _override_problems(values: Mapping[str, Any], key: str, value: Any) -> Iterator[str]:
    if key not in values:
        near = nearest(key, values)
        yield f"{key}={value}: config.json has no such key" + (f"; did you mean {near}?" if near else "")
    elif None not in (values[key], value) and _kind(values[key]) != _kind(value):
        yield f"{key}={value!r}: is a {_kind(value)}; config.json has the {_kind(values[key])} {values[key]!r}"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "truth value"
    kinds = {int: "number", float: "number", str: "text", list: "list", dict: "object"}
    return kinds[type(value)]


def _architecture_problems(values: Mapping[str, Any], shape: ModelShape) -> Iterator[str]:
    """What would let a checkpoint be written that no model of the family can load or run."""
    if shape.fp8_block not in (None, _FP8_BLOCK):
        yield f"quantization_config.weight_block_size is {shape.fp8_block}; it must be {_FP8_BLOCK}, as released"
    heads, kv_heads = shape.num_heads, values.get("num_key_value_heads")
    if kv_heads not in (None, heads):
        yield (
            f"num_key_value_heads is {kv_heads} and num_attention_heads {heads}; latent attention has as many of one"
            f" as of the other: set num_key_value_heads={heads} too"
        )
    if shape.qk_rope_head_dim % 2:
        yield f"qk_rope_head_dim is {shape.qk_rope_head_dim}; rotary dimensions come in pairs: make it even"
    if shape.num_moe_layers + shape.num_mtp_layers:
        yield from _group_problems(shape, values.get("n_group") or 1, values.get("topk_group") or 1)


def _group_problems(shape: ModelShape, groups: int, chosen: int) -> Iterator[str]:
    experts, per_token = shape.num_experts, shape.num_experts_per_token
    in_group = experts // groups
    if experts % groups or in_group < 2:
        yield (
            f"n_routed_experts / n_group = {experts} / {groups} = {experts / groups:g}; the router scores a group by"
            " its two best experts: groups are equal and hold at least 2"
        )
    elif chosen > groups:
        yield f"topk_group is {chosen} of n_group = {groups}; choose at most all groups"
    elif per_token > chosen * in_group:
        yield (
            f"num_experts_per_tok is {per_token}, but topk_group * n_routed_experts / n_group ="
            f" {chosen} * {experts} / {groups} = {chosen * in_group} experts stand to be chosen"
        )
