"""YAML 1.2's core schema, the lines of keys, and files that are not YAML."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.config.source import Layer, Origin
from r1hpc.config.yaml_core import PlainText, parse_yaml, read_yaml, resolve_scalar

HERE = Origin("c.yaml", directory=Path("/etc"))


def values_of(text: str) -> dict[str, object]:
    layer, problems = parse_yaml(text, HERE)
    assert problems == []
    return layer.values


def problems_of(text: str) -> list[str]:
    _, problems = parse_yaml(text, HERE)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24:00:00", "24:00:00"),  # 86400 in YAML 1.1
        ("1:30", "1:30"),
        ("1e-6", 1e-6),  # text in YAML 1.1
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e-1", -0.05),
        ("no", "no"),
        ("yes", "yes"),
        ("On", "On"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("~", None),
        ("null", None),
        ("", None),
        ("012", 12),  # 10 in YAML 1.1
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        ("+3", 3),
        ("1_000", "1_000"),
        ("2024-01-02", "2024-01-02"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("'5'", "5"),
        ('"true"', "true"),
        ("=", "="),
        ("0b11", "0b11"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = values_of(f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False))
def test_a_float_is_read_as_python_writes_it(number: float) -> None:
    text = repr(number).replace("inf", ".inf")
    assert resolve_scalar(text) == number


def test_every_key_and_item_has_its_line() -> None:
    layer, _ = parse_yaml("# first\nrun:\n  name: a\n\n  # why\n  root: b\nslurm:\n  setup:\n    - x\n    - y\n", HERE)
    assert {".".join(path): origin.line for path, origin in layer.origins.items()} == {
        "run": 2,
        "run.name": 3,
        "run.root": 6,
        "slurm": 7,
        "slurm.setup": 8,
        "slurm.setup.0": 9,
        "slurm.setup.1": 10,
    }


def test_a_key_given_twice_is_named_with_both_lines() -> None:
    assert problems_of("run:\n  seed: 1\n  name: a\n  seed: 2\n") == [
        "c.yaml:4: run.seed: given twice, first at line 2; keep one"
    ]


def test_variables_stay_as_they_are_written() -> None:
    assert values_of("vars: {PORT: 010, RATE: 1e3, FLAG: true}") == {
        "vars": {"PORT": "010", "RATE": "1e3", "FLAG": "true"}
    }


def test_only_unquoted_text_with_a_reference_is_read_again_later() -> None:
    values = values_of("a: ${N}\nb: '${N}'\nc: plain")
    assert [type(value) for value in values.values()] == [PlainText, str, str]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "c.yaml: is empty: write sections such as run:, hosts:, ckpt:"),
        ("- a\n", "c.yaml: holds no mapping: write sections such as run:, hosts:, ckpt:"),
        ("run:\n  <<: {a: 1}\n", "c.yaml:2: run.<<: merge keys are not read; use a site file"),
        ("? [a]\n: 1\n", "c.yaml:1: the file: a key must be a plain word"),
        ("a: &x\n  b: *x\n", "c.yaml:1: a.b: an alias (*) refers to what contains it"),
        ("a: !!timestamp 2024\n", "c.yaml:1: a: cannot read '2024' as tag:yaml.org,2002:timestamp"),
        ("a: 1\nb: 'x\x85y'\n", "c.yaml:2: not YAML: it holds the control character '\\x85' (column 6)"),
        ("a: " + "[" * 3000 + "]" * 3000, "c.yaml: is nested more than 20 levels deep"),
        ("a: " + "{b: " * 30 + "1" + "}" * 30, "c.yaml:1: a.b: is nested more than 20 levels deep"),
        ("a: !!int five\n", "c.yaml:1: a: cannot read 'five' as tag:yaml.org,2002:int"),
    ],
)
def test_what_is_no_configuration_is_said_with_its_line(text: str, problem: str) -> None:
    assert problems_of(text) == [problem]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("run:\n\tname: a\n", "c.yaml:2: not YAML: found character '\\t' that cannot start any token (column 1)"),
        ("run:\n  name: [a\nhosts:\n", "c.yaml:3: not YAML: "),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: not YAML: "),
        ("a: b: c\n", "c.yaml:1: not YAML: mapping values are not allowed here (column 5)"),
        ("a: *missing\n", "c.yaml:1: not YAML: found undefined alias"),
    ],
)
def test_a_syntax_error_is_said_with_line_and_column(text: str, start: str) -> None:
    (problem,) = problems_of(text)
    assert problem.startswith(start)


def test_a_tab_is_explained() -> None:
    (problem,) = problems_of("run:\n\tname: a\n")
    assert problem.endswith("YAML indents with spaces, not with tabs")


def test_files_that_cannot_be_read_are_said_by_name(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run:\n  name: caf\xe9\n")
    for path, expected in (
        (tmp_path / "absent.yaml", "c.yaml: cannot be read: No such file or directory"),
        (tmp_path, "c.yaml: cannot be read: Is a directory"),
        (tmp_path / "latin.yaml", "c.yaml: is not UTF-8 text: byte 16 is 0xe9"),
    ):
        layer, problems = read_yaml(path, "c.yaml")
        assert layer == Layer(Origin("c.yaml", directory=path.parent), readable=False)
        assert list(map(str, problems)) == [expected]
