"""What a key means, takes and is: text for `explain`, and the reference page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from r1hpc.config.aliases import Alias, aliases_by_key
from r1hpc.config.load import LoadedConfig
from r1hpc.config.modernize import plain_name, what_is_set, words_of
from r1hpc.config.nearest import nearest
from r1hpc.config.passed_through import refusal
from r1hpc.config.schema import Config
from r1hpc.config.structure import all_keys, field_words, is_open, owners, section_fields, section_type
from r1hpc.config.validate import first_sentence, shown, unknown_key
from r1hpc.errors import ConfigError


def explain(key: str, loaded: LoadedConfig | None) -> str:
    """What `key` means, takes and has as default; with a configuration also its value there and where that is written.

    `key` is section.name, or a section, or a name that one section has. Raises ConfigError for anything else.
    """
    section, _, name = key.partition(".")
    if section in Config.model_fields:
        return "\n".join(_explain_section(section) if not name else _explain_field(section, name, loaded))
    homes = owners(section) if not name else []
    if not homes and not name:
        homes = [old.partition(".")[0] for old in aliases_by_key() if old.partition(".")[2] == plain_name(section, "")]
    if not homes:
        close = nearest(key, [*all_keys(), *Config.model_fields])
        hint = f"did you mean {close}?" if close else f"the sections are {', '.join(Config.model_fields)}"
        raise ConfigError([f"{key}: no such key; {hint}"])
    return "\n\n".join("\n".join(_explain_field(home, section, loaded)) for home in homes)


def reference() -> str:
    """Every key of the schema as Markdown tables, one a section."""
    lines = [
        "# Configuration reference",
        "",
        "Generated from the schema: `python -m r1hpc.config reference > docs/configuration-reference.md`.",
        "How files, sites, variables and overrides work together is told in [configuration.md](configuration.md).",
    ]
    for section in Config.model_fields:
        lines += [
            "",
            f"## {section}",
            "",
            _doc(section),
            "",
            "| key | takes | default | meaning |",
            "|---|---|---|---|",
        ]
        for name, field in section_fields(section).items():
            cells = (f"`{name}`", field_words(field), _default(field), _one_line(field.description))
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _explain_section(section: str) -> Iterator[str]:
    yield f"{section}: {_doc(section)}"
    width = max(map(len, section_fields(section)))
    for name, field in section_fields(section).items():
        yield f"  {name:<{width}}  {first_sentence(field.description)}"


def _explain_field(section: str, name: str, loaded: LoadedConfig | None) -> Iterator[str]:
    name = plain_name(name, section)
    key = f"{section}.{name}"
    field = section_fields(section).get(name)
    alias = aliases_by_key().get(key)
    if field is None and alias is None:
        yield from _explain_other(section, name)
    else:
        yield key
    if field is not None:
        yield f"  {_one_line(field.description)}"
        yield f"  takes    {field_words(field)}"
        yield f"  default  {_default(field)}"
    elif alias is not None:
        yield from _explain_alias(alias)
        return
    if loaded is not None:
        yield f"  value    {shown(getattr(getattr(loaded.config, section), name, None))}"
        yield f"  from     {loaded.sources.get(key, 'its default')}"


def _explain_alias(alias: Alias) -> Iterator[str]:
    if alias.sets:
        yield f"  an older name: read as {', '.join(what_is_set(key, new) for key, new in alias.sets.items())}"
    else:
        yield f"  accepted without effect: {alias.why}"
    if alias.only and not alias.sets:
        yield f"  takes    only {words_of(alias.only)}"


def _explain_other(section: str, name: str) -> Iterator[str]:
    """A name that the schema does not have: an argument of a library, or an error."""
    key = f"{section}.{name}"
    if not is_open(section):
        raise ConfigError([f"{key}: {unknown_key((section, name))}"])
    refused = refusal(section, name)
    if refused is not None:
        raise ConfigError([f"{key}: {refused}"])
    yield key
    yield "  passed on to the library as it is, checked by name where the library is installed"


def _doc(section: str) -> str:
    return _one_line(inspect.getdoc(section_type(section)))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    assert value is not PydanticUndefined, "a field that is not required has a default"
    return "empty" if value in ((), {}) else shown(value)
