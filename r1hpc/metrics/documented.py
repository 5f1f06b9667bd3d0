"""The table of all keys of metrics.jsonl, from the docstrings of record.py: `python -m r1hpc.metrics.documented`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_SECTIONS = {
    "RolloutNumbers": "rollout/",
    "GroupNumbers": "groups/",
    "TrainNumbers": "train/",
    "EvalNumbers": "eval/SET/",
    "IterationRecord": "",
}

_LOSS = {
    "loss": "What is minimized: policy loss, KL and entropy with their coefficients.",
    "policy_loss": "The clipped surrogate alone.",
    "clip_fraction": "Share of tokens whose ratio was clipped.",
    "approx_kl": "old_logprobs - logprobs: how far the steps of the update have moved the policy.",
    "entropy": "Of the policy's next-token distribution.",
    "kl": "Of the policy to the reference, by grpo.kl_loss_type.",
    "tis_weight": "Truncated importance weight, with grpo.use_tis.",
    "tis_clip_fraction": "Share of tokens where it was truncated.",
    "mismatch_abs": "Mean of abs(old_logprobs - rollout_logprobs): trainer against engine.",
    "mismatch_kl": "KL of the engine's distribution to the trainer's (k3).",
    "mismatch_max": "The largest abs(old_logprobs - rollout_logprobs) of all trained tokens.",
}
"""Means over the trained tokens, weighted as in the loss; `_max` over all of them."""

_OTHERS = {
    "gpu_hours": "gpus * seconds/iteration / 3600.",
    "not_finite": 'Only where there are such: {key: "nan", "inf" or "-inf"}; the key itself is null.',
    "final_eval/SET/NAME": "As eval/SET/NAME, with the weights after the last iteration.",
    "tokens_per_s/rollout": "Generated, over the rollout.",
    "tokens_per_s/train": "Prompts and responses, over the optimizer steps.",
    "tokens_per_s/update": "The same tokens over the whole update.",
    "tokens_per_s/iteration": "The same tokens over the iteration.",
}


def told_keys() -> dict[str, str]:
    """Key to its meaning; words in capitals stand for any text."""
    return dict(_keys())


def keys_page() -> str:
    """The table, as docs/operations.md has it."""
    rows = [f"| `{key}` | {meaning} |" for key, meaning in told_keys().items()]
    return "\n".join(["| key | meaning |", "|---|---|", *rows]) + "\n"


def _keys() -> Iterator[tuple[str, str]]:
    tree = ast.parse(Path(__file__).with_name("record.py").read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    top = list(_fields(classes["IterationRecord"]))
    yield from ((name, meaning) for name, meaning in top if not meaning.startswith("`"))
    for name, prefix in _SECTIONS.items():
        if prefix:
            yield from (_key(prefix, field, meaning) for field, meaning in _fields(classes[name]))
    yield from (_key("", name, meaning) for name, meaning in top if meaning.startswith("`") and "below" not in meaning)
    yield from ((f"loss/{name}", meaning) for name, meaning in _LOSS.items())
    yield from _OTHERS.items()


def _key(prefix: str, field: str, meaning: str) -> tuple[str, str]:
    """Of a field that stands for several keys the docstring begins with their pattern."""
    found = re.match(r"`([^`]+)`: (.*)", meaning)
    return (found[1], found[2][0].upper() + found[2][1:]) if found else (prefix + field, meaning)


def _fields(section: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Those with a docstring under them."""
    for field, below in zip(section.body, section.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield field.target.id, " ".join(text.split()).replace("|", "or")


if __name__ == "__main__":
    print(keys_page(), end="")
