"""What an imported script takes from another configuration: the machine, and nothing of what is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from r1hpc.config.interpolate import Interpolator
from r1hpc.config.modernize import modernize, resolve_references
from r1hpc.config.paths import FILES, resolve_paths
from r1hpc.config.source import KeyPath, Layer, dotted
from r1hpc.config.structure import section_fields
from r1hpc.config.yaml_core import read_yaml
from r1hpc.errors import ConfigError

_SECTIONS: Final = ("vars", "run", "hosts", "slurm", "cast", "convert")
_KEYS: Final[tuple[KeyPath, ...]] = (("ckpt", "hf_config"), ("ckpt", "bf16_checkpoint"))
"""The keys of ckpt that no launch script has a flag for: they are about the plan and the cast."""


def over_base(layer: Layer, base: Path | None) -> tuple[Layer, list[str]]:
    """`layer` over the machine of the configuration `base`, relative files made absolute; and notices.

    Raises ConfigError where `base` cannot be read, or a file that it names is not there.
    """
    if base is None:
        return layer, []
    merged, problems = read_yaml(base, str(base))
    _, refused = modernize(merged)
    if problems or refused:
        raise ConfigError([str(problem) for problem in [*problems, *refused]])
    resolve_references(merged)
    notices = [*_overridden_variables(layer, merged, base), *_left_out(layer, merged, base)]
    merged.overlay(layer)
    _make_files_absolute(merged)
    return merged, notices


def _left_out(layer: Layer, merged: Layer, base: Path) -> list[str]:
    """Take the science out of `merged`; say which of it the script does not set itself."""
    science: list[KeyPath] = []
    for section, values in merged.values.items():
        if section not in _SECTIONS:
            science += [(section, name) for name in values] if isinstance(values, dict) else [(section,)]
    lost = []
    for path in science:
        if path in _KEYS:
            continue
        value, _ = merged.pop(path)
        if layer.value_at(path) is None and value != _default(path):
            lost.append(dotted(path))
    for section in [name for name in merged.values if name not in _SECTIONS and not merged.values[name]]:
        merged.pop((section,))
    return [f"{base}: what is trained comes from the script alone, so not taken: {', '.join(lost)}"] if lost else []


def _default(path: KeyPath) -> object:
    try:
        return section_fields(path[0])[path[1]].get_default(call_default_factory=True, validated_data={})
    except (KeyError, IndexError):  # a section with nothing under it, or an argument that passes through
        return None


def _overridden_variables(layer: Layer, merged: Layer, base: Path) -> list[str]:
    of_base = merged.value_at(("vars",))
    return [
        f"vars.{name} = {text} of the script replaces {of_base[name]} of {base}, also where {base} uses it"
        for name, text in (layer.value_at(("vars",)) or {}).items()
        if isinstance(of_base, dict) and of_base.get(name, text) != text
    ]


def _make_files_absolute(merged: Layer) -> None:
    """The files that must exist are looked for beside the file that names them, and the import may go elsewhere."""
    variables = Layer(merged.origin, {"vars": merged.value_at(("vars",))}, merged.origins)
    for path in FILES:
        interpolator = Interpolator(variables, os.environ)
        text = interpolator.value(merged.value_at(path), path, merged)
        if not isinstance(text, str) or interpolator.problems or os.path.isabs(os.path.expanduser(text)):
            continue  # loading the import says what is wrong, if anything is
        found = Layer(merged.origin)
        found.put(path, text, merged.where(path))
        problems = resolve_paths(found, ())
        if problems:
            raise ConfigError([str(problem) for problem in problems.values()])
        merged.put(path, found.value_at(path).replace("${", "$${"), merged.where(path))
