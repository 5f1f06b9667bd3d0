"""A configuration as text: YAML that loads back to the same, and a short hash of what is trained."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import yaml

from r1hpc.config.base import split_slice
from r1hpc.config.schema import Config
from r1hpc.config.yaml_core import CORE_SCHEMA, PlainText

HASHED_SECTIONS: Final = ("rollout", "perf", "grpo", "optimizer", "sglang", "megatron")
"""The sections that decide what is trained and how; of the others only run.seed is hashed."""
_HASH_DIGITS: Final = 12


def dump_config(config: Config) -> str:
    """Every value of `config`, defaults included, as YAML; `load_config` of it gives an equal Config."""
    return dump_yaml(_escaped(config.model_dump(mode="json")))


def config_hash(config: Config) -> str:
    """Twelve hex digits over the science: run.seed and the sections of `HASHED_SECTIONS`.

    Machine and place are out (hosts, slurm, cast, convert, ckpt, eval, the rest of run, the directory of prompt_data),
    so a move to another partition or file system keeps the hash. So are values equal to their default, so an argument
    that a newer version adds keeps it as well. SHA-256 of the sorted JSON.
    """
    sections = {name: getattr(config, name).model_dump(mode="json", exclude_defaults=True) for name in HASHED_SECTIONS}
    path, lines = split_slice(config.rollout.prompt_data)
    sections["rollout"]["prompt_data"] = Path(path).name + lines
    text = json.dumps({"seed": config.run.seed, **sections}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def dump_yaml(values: dict[str, Any]) -> str:
    """Nested values as block YAML, in the given order."""
    text: str = yaml.dump(values, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=10_000)
    return text


class _CoreDumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or the core schema of 1.2 would read as anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Quoted, so that what a reference becomes stays text and is not read as a number.
    style = "'" if "${" in text and not isinstance(text, PlainText) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _tag, _pattern, _first in CORE_SCHEMA:
    _CoreDumper.add_implicit_resolver(_tag, _pattern, _first)
for _type in (str, PlainText):
    _CoreDumper.add_representer(_type, _represent_text)


def _escaped(value: Any) -> Any:
    """`value` with every literal ${ written as $${."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "$${") if isinstance(value, str) else value
