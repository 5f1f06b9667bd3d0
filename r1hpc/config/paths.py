"""Relative paths become absolute, in this one place.

Directories and data (ckpt.*, run.root, rollout.prompt_data, eval.eval_prompt_data) are relative to the working
directory, as on any command line, and need not exist yet. Two files belong to the configuration and must exist:
ckpt.hf_config is looked for beside the file that names it, then in the working directory; hosts.hostfile in the
working directory, then beside the file that names it, then one directory up. ~ is the home directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from r1hpc.config.base import split_slice
from r1hpc.config.source import KeyPath, Layer, Origin, Problem, dotted
from r1hpc.config.structure import section_fields
from r1hpc.config.validate import about

_DIRECTORIES: tuple[KeyPath, ...] = (
    ("run", "root"),
    ("ckpt", "hf_checkpoint"),
    ("ckpt", "bf16_checkpoint"),
    ("ckpt", "ref_load"),
    ("ckpt", "load"),
    ("ckpt", "save"),
)
_HF_CONFIG: KeyPath = ("ckpt", "hf_config")
_HOSTFILE: KeyPath = ("hosts", "hostfile")
FILES = (_HF_CONFIG, _HOSTFILE)
"""The files that must exist."""
_PROMPT_DATA: KeyPath = ("rollout", "prompt_data")
_EVAL_SETS: KeyPath = ("eval", "eval_prompt_data")
_PYTHON: KeyPath = ("slurm", "python")
_SHELL_VARIABLE = re.compile(r"\$(?P<name>[A-Za-z_]\w*)")


def is_path(key: KeyPath) -> bool:
    """Whether the value of `key` is a path."""
    return key in (*_DIRECTORIES, *FILES, _PROMPT_DATA, _PYTHON) or (len(key) == 3 and key[:2] == _EVAL_SETS)


def resolve_paths(layer: Layer, known_broken: Collection[KeyPath]) -> dict[KeyPath, Problem]:
    """Make every path of `layer` absolute, in place; return what is wrong with paths, and with files that must exist.

    known_broken: keys whose problem has been reported already; they stay as they are.
    """
    eval_sets = layer.value_at(_EVAL_SETS)
    data = (_PROMPT_DATA, *((*_EVAL_SETS, name) for name in (eval_sets if isinstance(eval_sets, dict) else ())))
    keys = [key for key in (*_DIRECTORIES, *data, *FILES, _PYTHON) if isinstance(layer.value_at(key), str)]
    faults = {key: _fault(key, layer.value_at(key)) for key in keys if key not in known_broken}
    problems = {key: Problem(layer.where(key), fault, about(layer, key)) for key, fault in faults.items() if fault}
    for key in faults:
        if key in problems or key == _PYTHON:
            continue
        if key in _DIRECTORIES:
            _rewrite(layer, key, _absolute)
        elif key in data:
            _rewrite(layer, key, _absolute_sliced)
        elif key == _HF_CONFIG:
            _find(layer, key, _beside_then_here, problems)
        elif layer.value_at(key) != "auto":
            _find(layer, key, _here_then_beside, problems)
    return problems


def _fault(key: KeyPath, text: str) -> str | None:
    """What is wrong with a path before anybody looks for it."""
    if not text.strip():
        is_optional = len(key) == 2 and not section_fields(key[0])[key[1]].is_required()
        return "is empty: write a path" + (", or leave the key out" if is_optional else "")
    shell = _SHELL_VARIABLE.search(text)
    if shell is not None and key != _PYTHON:  # that one is a command line, which a shell reads
        return f"{shell[0]} would stay as it is: write ${{{shell['name']}}}"
    try:
        Path(text).expanduser()
    except RuntimeError:
        return f"there is no home directory for {Path(text).parts[0]}: write the path"
    return None


def _rewrite(layer: Layer, key: KeyPath, change: Callable[[str], str]) -> None:
    layer.put(key, change(layer.value_at(key)), layer.where(key))


def _is_readable(path: str) -> bool:
    # Not Path.is_file(), which raises where a directory on the way is closed.
    return os.path.isfile(path) and os.access(path, os.R_OK)


def _absolute(text: str) -> str:
    # Not Path.resolve(): a link to the newest copy must stay a link in the run's configuration.
    return os.path.abspath(Path(text).expanduser())


def _absolute_sliced(text: str) -> str:
    try:
        path, lines = split_slice(text)
    except ValueError:
        return text  # the field's own check says what is wrong
    return _absolute(path) + lines


def _find(
    layer: Layer, key: KeyPath, places: Callable[[Origin], Sequence[Path]], problems: dict[KeyPath, Problem]
) -> None:
    value = layer.value_at(key)
    origin = layer.where(key)
    candidates = list(dict.fromkeys(_absolute(str(place / Path(value).expanduser())) for place in places(origin)))
    found = next((candidate for candidate in candidates if _is_readable(candidate)), None)
    if found is not None:
        layer.put(key, found, origin)
    else:
        rule = f"no readable file; looked for {', '.join(candidates)}"
        problems[key] = Problem(origin, rule, f"{dotted(key)} = {value}")


def _beside_then_here(origin: Origin) -> Sequence[Path]:
    return (origin.directory or Path(), Path())


def _here_then_beside(origin: Origin) -> Sequence[Path]:
    beside = origin.directory or Path()
    return (Path(), beside, beside.parent)
