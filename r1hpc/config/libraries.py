"""The arguments that the installed SGLang and Megatron know, read from their source without running any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path


def sglang_arguments() -> frozenset[str] | None:
    """Names of SGLang's server arguments, None where sglang is not installed.

    In older versions they are the fields of ServerArgs itself, in newer ones of the classes in arg_groups/fields.
    """
    root = _package("sglang")
    if root is None:
        return None
    groups = sorted((root / "srt" / "arg_groups" / "fields").glob("*.py"))
    return (_fields([root / "srt" / "server_args.py"], {"ServerArgs"}) | _fields(groups)) or None


def megatron_fields() -> frozenset[str] | None:
    """Names of the fields of Megatron's MLATransformerConfig, None where megatron-core is not installed."""
    root = _package("megatron")
    if root is None or not (root / "core").is_dir():
        return None
    sources = [root / "core" / "transformer" / "transformer_config.py", root / "core" / "model_parallel_config.py"]
    return _fields(sources, {"MLATransformerConfig", "TransformerConfig", "ModelParallelConfig"}) or None


def _package(name: str) -> Path | None:
    # find_spec of a top-level name imports nothing.
    spec = find_spec(name)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _fields(sources: Iterable[Path], classes: set[str] | None = None) -> frozenset[str]:
    """Annotated class attributes of `classes`, or of every class, in those `sources` that exist."""
    return frozenset(
        statement.target.id
        for source in sources
        if source.is_file()
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and (classes is None or node.name in classes)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    )
