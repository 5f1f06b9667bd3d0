"""Rewrites a layer into today's names: flag spelling, then the table of aliases; every change gives a notice."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from r1hpc.config.aliases import VALUE_ALIASES, WRITTEN, Alias, SameAs, aliases_by_key
from r1hpc.config.schema import Config
from r1hpc.config.source import KeyPath, Layer, Notice, Origin, Problem, dotted
from r1hpc.config.structure import section_fields


def modernize(layer: Layer) -> tuple[list[Notice], list[Problem]]:
    """Rewrite `layer` in place; return the notices, in the order of the text, and what could not be accepted."""
    notices: list[Notice] = []
    problems: list[Problem] = []
    aliases = aliases_by_key()
    for section in [name for name in Config.model_fields if isinstance(layer.values.get(name), dict)]:
        notices += _respell(layer, section, aliases, problems)
        for name in list(layer.values[section]):
            alias = aliases.get(f"{section}.{name}")
            if alias is not None:
                _replace(layer, (section, name), alias, notices, problems)
    notices += _replace_values(layer)
    return sorted(notices, key=lambda notice: notice.origin.line or 0), problems


def resolve_references(layer: Layer) -> None:
    """Give every `SameAs` the value of the key that it names, in place; unset keys have their default."""
    for section, values in layer.values.items():
        for name, value in list(values.items()) if isinstance(values, dict) else ():
            if isinstance(value, SameAs):
                layer.values[section][name] = _value_or_default(layer, tuple(value.key.split(".")))


def _respell(layer: Layer, section: str, aliases: Collection[str], problems: list[Problem]) -> list[Notice]:
    """Read --save-interval, save-interval, SAVE_INTERVAL and sglang_dp_size (in sglang) as the keys they mean."""
    notices = []
    for name in list(layer.values[section]):
        plain = plain_name(name, section)
        known = plain in section_fields(section) or f"{section}.{plain}" in aliases
        flag_like = section in ("sglang", "megatron") and plain.isidentifier()
        if plain == name or not (known or flag_like):
            continue
        value, origin = layer.pop((section, name))
        if plain in layer.values[section]:
            rule = f"given twice, as {plain} at {layer.where((section, plain))} too; keep one"
            problems.append(Problem(origin, rule, f"{section}.{name}"))
            continue
        layer.put((section, plain), value, origin)
        notices.append(Notice(origin, f"{section}.{name} is read as {plain}"))
    return notices


def plain_name(name: str, section: str) -> str:
    """The key that a flag's spelling stands for: no dashes, lower case, no prefix of the section itself."""
    plain = name.removeprefix("--").replace("-", "_").lower()
    return plain.removeprefix("sglang_") if section == "sglang" else plain


def _replace(layer: Layer, old: KeyPath, alias: Alias, notices: list[Notice], problems: list[Problem]) -> None:
    value, origin = layer.pop(old)
    if alias.only == (True,) and value is False and alias.sets:
        notices.append(Notice(origin, f"{dotted(old)} = false has no effect: leave it out"))
    elif alias.only and not any(_same(value, accepted) for accepted in alias.only):
        rule = f"only {words_of(alias.only)} is accepted" + (f": {alias.why}" if alias.why else "")
        problems.append(Problem(origin, rule, f"{dotted(old)} = {json.dumps(value, default=str)}"))
    elif not alias.sets:
        notices.append(Notice(origin, f"{dotted(old)} is accepted without effect: {alias.why}"))
    else:
        said = [_set(layer, tuple(key.split(".")), new, value, origin) for key, new in alias.sets.items()]
        notices.append(
            Notice(origin, f"{dotted(old)} is an older name: {', '.join(filter(None, said)) or 'nothing new'}")
        )


def _same(value: object, accepted: object) -> bool:
    # true == 1 in Python, and not in a configuration.
    return value == accepted and isinstance(value, bool) == isinstance(accepted, bool)


def words_of(accepted: Sequence[object]) -> str:
    """`none, aux_loss or seq_aux_loss`."""
    words = [value if isinstance(value, str) else json.dumps(value) for value in accepted]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _set(layer: Layer, path: KeyPath, new: object, written: object, origin: Origin) -> str:
    """Set one key that an alias stands for, unless the same file says it itself; return the words for the notice."""
    present = layer.value_at(path)
    if present is not None and present == (written if new is WRITTEN else new):
        return ""
    if present is not None:
        return f"{dotted(path)}, which {layer.where(path)} sets itself, is taken"
    layer.put(path, written if new is WRITTEN else new, origin)
    return f"read as {what_is_set(dotted(path), new)}"


def what_is_set(key: str, new: object) -> str:
    """`sglang.ep_size = rollout_num_gpus_per_engine`, or the key alone where it takes the value as written."""
    return key if new is WRITTEN else f"{key} = {_said(new)}"


def _said(new: object) -> str:
    return new.key.rpartition(".")[2] if isinstance(new, SameAs) else json.dumps(new).strip('"')


def _replace_values(layer: Layer) -> list[Notice]:
    notices = []
    for (key, old), new in VALUE_ALIASES.items():
        path = tuple(key.split("."))
        if layer.value_at(path) == old:
            origin = layer.where(path)
            layer.put(path, new, origin)
            notices.append(Notice(origin, f"{key} = {old} is an older name: read as {new}"))
    return notices


def _value_or_default(layer: Layer, path: KeyPath) -> object:
    value = layer.value_at(path)
    return section_fields(path[0])[path[1]].default if value is None else value
