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


def shape_is_known(loaded: LoadedConfig) -> bool:
    """Whether the model's config.json is on disk, so that the configuration can be planned."""
    return loaded.config.ckpt.hf_config is not None or _stored(loaded) is not None


def _configured_shape(loaded: LoadedConfig) -> ModelShape:
    """The shape in ckpt.hf_checkpoint, or in ckpt.hf_config while the checkpoint is not on disk or is closed."""
    given = loaded.config.ckpt.hf_config
    stored = _stored(loaded)
    if stored is not None:
        shape = read_model_shape(stored)
        if given is not None:
            _check_same_model(loaded, Path(given), stored, shape)
        return shape
    if given is not None:
        return read_model_shape(Path(given))
    raise _refusal(
        loaded,
        "ckpt.hf_checkpoint",
        f"{loaded.config.ckpt.hf_checkpoint} holds no config.json; fetch the checkpoint, or give ckpt.hf_config",
    )


def _stored(loaded: LoadedConfig) -> Path | None:
    """The checkpoint's config.json; None while it is not on disk, or where ckpt.hf_config can stand in for it."""
    directory = loaded.config.ckpt.hf_checkpoint
    path = Path(directory) / "config.json"
    try:
        return path if path.is_file() else None
    except OSError as error:
        if loaded.config.ckpt.hf_config is not None:
            return None  # a plan needs no checkpoint; submit checks that the jobs can read it
        reason = (error.strerror or str(error)).lower()
        text = (
            f"ckpt.hf_checkpoint = {directory}: {reason}; give a directory that this user can read, or ckpt.hf_config"
        )
        raise _refusal(loaded, "ckpt.hf_checkpoint", text) from error


def _check_same_model(loaded: LoadedConfig, given: Path, stored: Path, shape: ModelShape) -> None:
    """Refuse a ckpt.hf_config of another model. How the weights are stored may differ: what is on disk says that."""
    other = read_model_shape(given)
    differences = [
        f"{field.name} {getattr(other, field.name)} against {getattr(shape, field.name)}"
        for field in fields(ModelShape)
        if field.name != "fp8_block" and getattr(other, field.name) != getattr(shape, field.name)
    ]
    if differences:
        text = f"{given} is not the model in {stored}: {', '.join(differences)}; leave hf_config out"
        raise _refusal(loaded, "ckpt.hf_config", text)


def _refusal(loaded: LoadedConfig, key: str, text: str) -> PlanError:
    return PlanError([f"{loaded.where(key)}: {text}"])
