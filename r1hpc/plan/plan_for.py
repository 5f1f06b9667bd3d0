"""From a loaded configuration to its plan: finds the model's config.json, says where each problem stands."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from r1hpc.config import LoadedConfig
from r1hpc.errors import PlanError
from r1hpc.plan.model_shape import ModelShape, read_model_shape
from r1hpc.plan.plan import Plan, make_plan


def plan_for(loaded: LoadedConfig, *, model: Path | None = None, num_prompts: int | None = None) -> Plan:
    """The plan of a loaded configuration, with its notices left to the caller.

    model: a config.json to plan with in place of the configured ones.
    Raises PlanError with every problem, each with file:line; ModelShapeError for a config.json that cannot be used.
    """
    shape = read_model_shape(model) if model else _configured_shape(loaded)
    return make_plan(loaded.config, shape, num_prompts=num_prompts, where=loaded.where)


def _configured_shape(loaded: LoadedConfig) -> ModelShape:
    """The shape in ckpt.hf_checkpoint, or in ckpt.hf_config while the checkpoint is not on disk."""
    ckpt = loaded.config.ckpt
    stored = Path(ckpt.hf_checkpoint) / "config.json"
    if ckpt.hf_config is None:
        if not stored.is_file():
            raise PlanError(
                [
                    f"{loaded.where('ckpt.hf_checkpoint')}: {stored} is not there;"
                    " fetch the checkpoint, or give its config.json as ckpt.hf_config"
                ]
            )
        return read_model_shape(stored)
    given = read_model_shape(Path(ckpt.hf_config))
    if not stored.is_file():
        return given
    shape = read_model_shape(stored)
    differences = [
        f"{field.name} {getattr(given, field.name)} against {getattr(shape, field.name)}"
        for field in fields(ModelShape)
        # The bf16 copy of a checkpoint is the same model: what is on disk says how it is stored.
        if field.name != "fp8_block" and getattr(given, field.name) != getattr(shape, field.name)
    ]
    if differences:
        raise PlanError(
            [
                f"{loaded.where('ckpt.hf_config')}: {ckpt.hf_config} is not the model in {stored}:"
                f" {', '.join(differences)}; leave hf_config out"
            ]
        )
    return shape
