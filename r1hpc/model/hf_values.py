"""The values of a DeepSeek-V3 config.json that are no sizes: rope, router, norm. Every problem is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from r1hpc.plan.model_shape import ModelShape

_SUPPORTED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "norm_topk_prob": (True,),
    "tie_word_embeddings": (False,),
}
"""Keys that must have one of these values."""

_YARN_NUMBERS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class Yarn:
    """rope_scaling, under the names of the published config (arXiv:2309.00071)."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class HfValues:
    """What config.json says besides the sizes of ModelShape."""

    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None
    """null: plain rotary embedding, no scaling."""
    num_groups: int
    """Groups of experts that routing first chooses among."""
    groups_per_token: int
    routed_scaling_factor: float


def read_hf_values(values: Mapping[str, Any], shape: ModelShape) -> tuple[HfValues, list[str]]:
    """The values, and every problem with them; where there are problems the values mean nothing."""
    problems = [
        f"{key} is {values.get(key)!r}; supported: {', '.join(map(repr, accepted))}"
        for key, accepted in _SUPPORTED.items()
        if values.get(key) not in accepted
    ]
    key_heads = values.get("num_key_value_heads", shape.num_heads)
    if key_heads != shape.num_heads:
        problems.append(
            f"num_key_value_heads is {key_heads!r}, but latent attention has a key for each of the"
            f" num_attention_heads = {shape.num_heads}"
        )
    read = HfValues(
        rms_norm_eps=_number(values, "rms_norm_eps", problems),
        rope_theta=_number(values, "rope_theta", problems),
        yarn=_yarn(values.get("rope_scaling"), problems),
        num_groups=int(_number(values, "n_group", problems)),
        groups_per_token=int(_number(values, "topk_group", problems)),
        routed_scaling_factor=_number(values, "routed_scaling_factor", problems),
    )
    problems += _routing_problems(read, shape)
    return read, problems


def _routing_problems(read: HfValues, shape: ModelShape) -> list[str]:
    """Megatron computes the released model's routing for some numbers only."""
    experts, chosen = shape.num_experts, shape.num_experts_per_token
    groups, kept = read.num_groups, read.groups_per_token
    if experts % groups:
        return [f"n_routed_experts = {experts} cannot be dealt to n_group = {groups} groups"]
    problems = []
    if kept > groups:
        problems.append(f"topk_group is {kept}, more than n_group = {groups}")
    if chosen > kept * (experts // groups):
        problems.append(
            f"num_experts_per_tok is {chosen}, more than topk_group * n_routed_experts / n_group = {kept} *"
            f" {experts} / {groups} = {kept * (experts // groups)}"
        )
    if chosen < 2:
        problems.append(f"num_experts_per_tok is {chosen}; from 2 on Megatron divides by the sum of the chosen scores")
    if groups > 1 and chosen // kept != 2:
        problems.append(
            f"num_experts_per_tok // topk_group = {chosen} // {kept} = {chosen // kept}; it must be 2: the released"
            " model scores a group by its best 2 experts, Megatron by its best num_experts_per_tok // topk_group"
        )
    return problems


def _yarn(scaling: object, problems: list[str]) -> Yarn | None:
    if scaling is None:
        return None
    if not isinstance(scaling, Mapping):
        problems.append(f"rope_scaling is {scaling!r}; it must be null or an object")
        return None
    kind = scaling.get("type", scaling.get("rope_type"))
    if kind != "yarn":
        problems.append(f"rope_scaling has type {kind!r}; supported: 'yarn', or rope_scaling null")
        return None
    unknown = sorted(set(scaling) - {"type", "rope_type", *_YARN_NUMBERS})
    if unknown:
        problems.append(f"rope_scaling has {', '.join(unknown)}; supported: type, {', '.join(_YARN_NUMBERS)}")
    numbers = {name: _number(scaling, name, problems, "rope_scaling.") for name in _YARN_NUMBERS}
    original = int(numbers.pop("original_max_position_embeddings"))
    return Yarn(original_max_position_embeddings=original, **numbers)


def _number(values: Mapping[str, Any], key: str, problems: list[str], prefix: str = "") -> float:
    """A positive number; 1 and a problem where it is none. mscale numbers may be 0, which is no scaling."""
    value = values.get(key)
    least_is_zero = key.startswith("mscale")
    if isinstance(value, int | float) and not isinstance(value, bool) and (value > 0 or (least_is_zero and value == 0)):
        return value
    rule = "a number of at least 0" if least_is_zero else "a positive number"
    problems.append(f"{prefix}{key} is missing" if value is None else f"{prefix}{key} is {value!r}; it must be {rule}")
    return 1
