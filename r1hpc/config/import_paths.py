"""Functions of the user, named by import path: whether they are there, seen without importing anything.

A typo would otherwise show on allocated hosts only. Jobs look where this process does: they start in its directory, and
PYTHONPATH travels.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Final

from r1hpc.config.load import LoadedConfig
from r1hpc.config.nearest import nearest
from r1hpc.config.schema import Config
from r1hpc.errors import ConfigError

IMPORT_PATHS: Final = ("rollout.custom_rm_path", "rollout.dynamic_sampling_filter_path")
_DYNAMIC: Final = frozenset(("__getattr__", "*"))
"""What makes the names of a module unknown before it runs: its own look-up, and a star import."""


class _NotFound(Exception):
    """No module of this name where this process looks; the jobs' own Python may have it."""


class _Wrong(Exception):
    """The module is there, and cannot have the function."""


def check_import_paths(loaded: LoadedConfig) -> tuple[str, ...]:
    """Raise ConfigError for import paths that lead nowhere; return notices about those that only a job can look up."""
    problems, notices = [], []
    for key in IMPORT_PATHS:
        section, _, name = key.partition(".")
        path = getattr(getattr(loaded.config, section), name)
        if path is None:
            continue
        where = loaded.where(key)
        told = where if where.endswith(path) else f"{where}: {key} = {path}"  # an override says it already
        try:
            _look_up(path)
        except _Wrong as error:
            problems.append(f"{told}: {error}")
        except _NotFound as error:
            other = _other_python(loaded.config)
            if other is None:
                problems.append(f"{told}: {error}")
            else:
                notices.append(f"{told}: {error}; not checked further, for {other} may bring it")
    if problems:
        raise ConfigError(problems)
    return tuple(notices)


def _other_python(config: Config) -> str | None:
    """What lets jobs import other modules than this process."""
    slurm = config.slurm
    if slurm.container:
        return "slurm.container"
    if slurm.python is not None and slurm.python != sys.executable:
        return f"slurm.python = {slurm.python}"
    return "slurm.setup" if any("PYTHONPATH" in line or "activate" in line for line in slurm.setup) else None


def _look_up(path: str) -> None:
    module, _, name = path.rpartition(".")
    names = _names_of(module, _find(module))
    if names is None or name in names or not _DYNAMIC.isdisjoint(names):
        return
    close = nearest(name, names)
    raise _Wrong(
        f"{module} has no {name}; "
        + (f"did you mean {close}?" if close else f"it has {', '.join(names) or 'no names'}")
    )


def _find(module: str) -> ModuleSpec:
    """The place of a module; its parents are found, not imported."""
    spec: ModuleSpec | None = None
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        parent, name = spec, ".".join(parts[:length])
        search = None if parent is None else list(parent.submodule_search_locations or ())
        if parent is not None and not search:
            raise _Wrong(f"{parent.name} is a module, not a package: there is no {name}")
        spec = _spec(name, search)
        if spec is None and search is not None:
            raise _NotFound(f"no module {parts[length - 1]} in {', '.join(search)}")
        if spec is None:
            raise _NotFound(
                f"no module {name} in {', '.join(_own_places())} or the packages of {sys.executable}; start from the"
                " directory that holds it, or name that in PYTHONPATH, which the jobs are given"
            )
    assert spec is not None, "an import path has a module"
    return spec


def _spec(name: str, search: Sequence[str] | None) -> ModuleSpec | None:
    # Not importlib.util.find_spec, which imports the packages around a module: they may load torch.
    for finder in sys.meta_path:
        spec = finder.find_spec(name, search)
        if spec is not None:
            return spec
    return None


def _own_places() -> list[str]:
    """The directories of sys.path that are not Python's own."""
    places = dict.fromkeys(place or os.getcwd() for place in sys.path)
    prefixes = {sys.prefix, sys.base_prefix}
    return [
        place
        for place in places
        if os.path.isdir(place) and not any(Path(place).is_relative_to(prefix) for prefix in prefixes)
    ]


def _names_of(module: str, spec: ModuleSpec) -> list[str] | None:
    """The names at the top level of a module, in its order; null where there is no source to read them from."""
    source = None
    if isinstance(spec.loader, InspectLoader):
        try:
            source = spec.loader.get_source(module)
        except (ImportError, OSError) as error:
            raise _Wrong(f"{spec.origin} cannot be read: {error}") from error
    if source is None:
        return None if spec.loader is not None and spec.origin is not None else []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise _Wrong(f"{spec.origin}{'' if line is None else f':{line}'} is no Python: {error}") from error
    return list(dict.fromkeys(_bound(tree)))


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that running `node` binds, but for those inside functions and classes."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases):
                yield from (alias.asname or alias.name.partition(".")[0] for alias in aliases)
            case ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Lambda():
                pass
            case _:
                yield from _bound(child)
