"""Relative paths become absolute, in this one place.

Directories and data (ckpt.*, run.root, rollout.prompt_data, eval.eval_prompt_data) are relative to the working
directory, as on any command line, and need not exist yet. Two files belong to the configuration and must exist:
ckpt.hf_config is looked for beside the file that names it, then in the working directory; hosts.hostfile in the
working directory, then beside the file that names it, then one directory up. ~ is the home directory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from r1hpc.config.base import split_slice
from r1hpc.config.source import KeyPath, Layer, Origin, Problem, dotted

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
_PROMPT_DATA: KeyPath = ("rollout", "prompt_data")
_EVAL_SETS: KeyPath = ("eval", "eval_prompt_data")


def resolve_paths(layer: Layer) -> dict[KeyPath, Problem]:
    """Make every path of `layer` absolute, in place; return what is wrong with the files that must exist."""
    for key in _DIRECTORIES:
        _rewrite(layer, key, _absolute)
    eval_sets = layer.value_at(_EVAL_SETS)
    for key in (_PROMPT_DATA, *((*_EVAL_SETS, name) for name in (eval_sets if isinstance(eval_sets, dict) else ()))):
        _rewrite(layer, key, _absolute_sliced)
    problems: dict[KeyPath, Problem] = {}
    _find(layer, _HF_CONFIG, _beside_then_here, problems)
    if layer.value_at(_HOSTFILE) != "auto":
        _find(layer, _HOSTFILE, _here_then_beside, problems)
    return problems


def _rewrite(layer: Layer, key: KeyPath, change: Callable[[str], str]) -> None:
    value = layer.value_at(key)
    if isinstance(value, str) and value:
        layer.put(key, change(value), layer.where(key))


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
    if not isinstance(value, str) or not value:
        return
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
