"""Turns a launch script of bash flag arrays into a configuration: sections by the flags' names, not the arrays'."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from r1hpc.config.aliases import aliases_by_key
from r1hpc.config.bash_script import Flag, read_script
from r1hpc.config.bash_variables import references, settle
from r1hpc.config.dump import dump_yaml
from r1hpc.config.import_base import over_base
from r1hpc.config.libraries import megatron_fields
from r1hpc.config.modernize import modernize, resolve_references
from r1hpc.config.nearest import nearest
from r1hpc.config.owned import MODEL_ARGUMENTS
from r1hpc.config.passed_through import check_passed_through
from r1hpc.config.schema import Config
from r1hpc.config.source import KeyPath, Layer, Origin
from r1hpc.config.structure import section_fields
from r1hpc.config.yaml_core import PlainText, resolve_scalar
from r1hpc.errors import ConfigError

_FLAG_SECTIONS = ("ckpt", "rollout", "eval", "perf", "grpo", "optimizer", "megatron")
"""Sections whose keys are flags; sglang has a prefix of its own, the rest of the schema is no flag of a script."""
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Imported:
    """A configuration as YAML text, and what a person should know of how it came about."""

    text: str
    notices: tuple[str, ...]


def import_script(script: Path, base: Path | None) -> Imported:
    """The flags of `script` as YAML, with the machine of the configuration `base` where one is given.

    A launch script says nothing of hosts and Slurm: those sections come from `base`, or are to be added by hand.
    What is trained comes from the script alone.
    Raises ConfigError with every flag that has no meaning here, each with array, line and the nearest known flag.
    """
    try:
        read = read_script(script.read_text(encoding="utf-8"), str(script))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{script}: cannot be read: {error}"]) from error
    layer, notices, problems = _layer_of_flags(read.flags, str(script))
    said, refused = modernize(layer)
    resolve_references(layer)
    unchecked, unknown = check_passed_through(layer)
    settled = settle(
        [flag.use for flag in read.flags if flag.name.replace("-", "_") not in MODEL_ARGUMENTS], read.assignments
    )
    unsettled = [f"{script}:{line}: {text}" for line, text in settled.problems]
    problems = [*read.problems, *problems, *unsettled, *map(str, [*refused, *unknown])]
    if not read.flags and not problems:
        problems = [f"{script}: no flags found: expected arrays such as CKPT_ARGS=( --load DIR ... )"]
    if problems:
        raise ConfigError(problems)
    if settled.values:
        layer.put(("vars",), dict(settled.values), layer.origin)
    conditions = [f"{script}:{line}: {text}" for line, text in settled.notices]
    merged, of_base = over_base(layer, base)
    notices = [*read.notices, *conditions, *notices, *map(str, said), *unchecked, *of_base, *_missing(merged, base)]
    return Imported(_render(merged, script, notices), tuple(notices))


def _layer_of_flags(flags: Sequence[Flag], label: str) -> tuple[Layer, list[str], list[str]]:
    layer = Layer(Origin(label))
    notices: list[str] = []
    problems: list[str] = []
    keys = _flag_keys()
    model_arguments: list[str] = []
    for flag in flags:
        origin = Origin(label, flag.line, Path())
        name = flag.name.replace("-", "_")
        path = _key_of(name, keys)
        if name in MODEL_ARGUMENTS:
            model_arguments.append(f"--{flag.name}")
        elif path is None:
            close = nearest(flag.name, [key.replace("_", "-") for key in [*keys, *(megatron_fields() or ())]])
            hint = f"; did you mean --{close}?" if close else ""
            problems.append(f"{origin}: {flag.array}: --{flag.name}: unknown flag{hint}")
        elif flag.unread is not None:
            rule = f"{flag.unread} would have to be run: write its value in its place"
            problems.append(f"{origin}: {flag.array}: --{flag.name}: {rule}")
        else:
            if layer.value_at(path) is not None:
                notices.append(f"{origin}: --{flag.name} was given before ({layer.where(path)}): this one is taken")
            _put(layer, path, flag, origin, problems)
    if model_arguments:
        notices.append(f"{label}: derived from config.json, so left out: {' '.join(model_arguments)}")
    return layer, notices, problems


def _flag_keys() -> dict[str, KeyPath]:
    """Flag, with underscores, to the key that it sets; older names are keys too until they are modernized."""
    keys: dict[str, KeyPath] = {name: (section, name) for section in _FLAG_SECTIONS for name in section_fields(section)}
    for alias in aliases_by_key():
        section, _, name = alias.partition(".")
        keys.setdefault(f"sglang_{name}" if section == "sglang" else name, (section, name))
    keys |= {f"sglang_{name}": ("sglang", name) for name in section_fields("sglang")}
    keys["rollout_num_gpus_per_engine"] = ("sglang", "rollout_num_gpus_per_engine")
    return keys


def _key_of(name: str, keys: Mapping[str, KeyPath]) -> KeyPath | None:
    if name in keys:
        return keys[name]
    if name.startswith("sglang_"):
        return ("sglang", name.removeprefix("sglang_"))
    fields = megatron_fields()
    # Without Megatron there is no telling a field of it from a typing error: loading says that it was not checked.
    return ("megatron", name) if fields is None or name in fields else None


def _put(layer: Layer, path: KeyPath, flag: Flag, origin: Origin, problems: list[str]) -> None:
    field = section_fields(path[0]).get(path[1])
    if path == ("eval", "eval_prompt_data"):
        if len(flag.values) % 2:
            problems.append(f"{origin}: {flag.array}: --{flag.name}: takes pairs, NAME PATH")
            return
        pairs = zip(flag.values[::2], flag.values[1::2], strict=True)
        layer.put(path, dict(pairs), origin)
    elif len(flag.values) > 1 and field is not None:
        said = " ".join(flag.values)
        problems.append(f"{origin}: {flag.array}: --{flag.name}: takes one value, not {len(flag.values)}: {said}")
    else:
        values = [_value(text, field) for text in flag.values]
        layer.put(path, values if len(values) > 1 else values[0] if values else True, origin)


def _value(text: str, field: FieldInfo | None) -> Any:
    """`text` as the field takes it: a name of digits stays text, also where a variable gives it."""
    takes_text = field is not None and (field.annotation is str or str in get_args(field.annotation))
    if "${" in text and not (takes_text and _VARIABLE.fullmatch(text)):
        return PlainText(text)
    return text if takes_text else resolve_scalar(text)


def _missing(merged: Layer, base: Path | None) -> list[str]:
    """What a person has to add: required keys that are in no launch script, and variables that it does not set."""
    variables = sorted(set(references(str(merged.values))) - (merged.value_at(("vars",)) or {}).keys())
    missing = [
        f"{section}.{name}"
        for section in Config.model_fields
        for name, field in section_fields(section).items()
        if field.is_required() and merged.value_at((section, name)) is None
    ]
    said = [f"to be set under vars: or in the environment: {', '.join(variables)}"] if variables else []
    way = "to be added by hand" + ("" if base else ", or with --base CONFIG")
    return [*said, f"{way}: {', '.join(missing)}"] if missing else said


def _render(merged: Layer, script: Path, notices: Sequence[str]) -> str:
    head = [f"# Imported from {script.name}: python -m r1hpc.config import {script.name}", *(f"# {n}" for n in notices)]
    sections = {name: merged.values[name] for name in ("vars", *Config.model_fields) if name in merged.values}
    blocks = [dump_yaml({name: values}) for name, values in sections.items()]
    return "\n".join([*head, "", "\n".join(blocks)])
