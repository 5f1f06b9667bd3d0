"""File, site and overrides over each other; variables; where each value was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.config import load_config
from r1hpc.config.overrides import read_override
from r1hpc.config.source import Layer, Origin
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig


def errors_of(path: object, **options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, **options)  # type: ignore[arg-type]
    return caught.value.problems


def test_a_site_merges_key_by_key_and_an_override_comes_last(write_config: WriteConfig) -> None:
    path = write_config("slurm:\n  partition: a\n  qos: low\n  setup: [one, two]\n", append=True)
    write_config("slurm:\n  partition: b\n  setup: [three]\nrun:\n  seed: 7\n", "sites/x.yaml")
    loaded = load_config(path, site="x", overrides=["slurm.qos=high", "run.seed=8", "run.seed=9"])
    slurm = loaded.config.slurm
    assert (slurm.partition, slurm.qos, slurm.setup, loaded.config.run.seed) == ("b", "high", ("three",), 9)
    assert loaded.where("slurm.partition") == "sites/x.yaml:2"
    assert loaded.where("slurm.qos") == "--set slurm.qos=high"
    assert loaded.where("run.seed") == "--set run.seed=9"
    assert loaded.where("run.root") == "config.yaml:3"


def test_a_key_with_its_default_is_found_at_its_section_or_its_file(write_config: WriteConfig) -> None:
    loaded = load_config(write_config())
    assert loaded.where("run.max_crashes") == "config.yaml:1"
    assert loaded.where("perf.context_parallel_size") == "config.yaml"
    assert "run.max_crashes" not in loaded.sources


def test_a_section_with_nothing_under_it_changes_nothing(write_config: WriteConfig) -> None:
    path = write_config("slurm:\n  partition: a\neval:\n", append=True)
    write_config("slurm:\nrun:\n", "sites/x.yaml")
    assert load_config(path, site="x").config.slurm.partition == "a"


def test_a_site_may_be_a_path(write_config: WriteConfig) -> None:
    path = write_config()
    write_config("slurm: {partition: far}\n", "elsewhere/site.yaml")
    assert load_config(path, site="elsewhere/site.yaml").config.slurm.partition == "far"
    assert errors_of(path, site="elsewhere/none.yaml") == [
        "elsewhere/none.yaml: cannot be read: No such file or directory"
    ]


def test_an_unknown_site_lists_those_that_there_are(write_config: WriteConfig) -> None:
    path = write_config(name="configs/config.yaml")
    assert errors_of(path, site="alps") == ["--site alps: no such site: there are no site files in configs/sites"]
    write_config("slurm:\n", "configs/sites/alpes.yaml")
    write_config("slurm:\n", "configs/sites/juno.yaml")
    assert errors_of(path, site="alps") == [
        "--site alps: no such site: configs/sites has alpes, juno; did you mean alpes?"
    ]


def test_variables_come_from_overrides_then_sites_then_the_file_then_the_environment(write_config: WriteConfig) -> None:
    text = "vars:\n  A: file\n  B: file\n  C: file\nslurm:\n  setup: ['${A}', '${B}', '${C}', '${D}']\n"
    path = write_config(text, append=True)
    write_config("vars: {B: site, C: site}\n", "sites/x.yaml")
    environ = {"A": "file", "D": "environment"}
    loaded = load_config(path, site="x", overrides=["vars.C=override"], environ=environ)
    assert loaded.config.slurm.setup == ("file", "site", "override", "environment")


def test_variables_may_refer_to_each_other_and_a_double_dollar_escapes(write_config: WriteConfig) -> None:
    text = "vars:\n  HOST: ${NAME}-1\n  NAME: n${DIGIT}\nslurm:\n  comment: a ${HOST} $${HOST} $HOME ${HOST}\n"
    loaded = load_config(write_config(text, append=True), environ={"DIGIT": "7"})
    assert loaded.config.slurm.comment == "a n7-1 ${HOST} $HOME n7-1"


def test_unquoted_references_are_read_as_what_they_become(write_config: WriteConfig) -> None:
    text = "vars: {N: 90}\nslurm:\n  nice: ${N}\n  comment: '${N}'\n"
    loaded = load_config(write_config(text, append=True), environ={})
    assert (loaded.config.slurm.nice, loaded.config.slurm.comment) == (90, "90")


def test_a_variable_that_hides_another_value_of_the_environment_is_noticed(write_config: WriteConfig) -> None:
    path = write_config("vars:\n  BASE: /a\n", append=True)
    assert load_config(path, environ={"BASE": "/a"}).notices == ()
    (notice,) = load_config(path, environ={"BASE": "/b"}).notices
    assert notice == "config.yaml:20: vars.BASE = /a is used, not BASE=/b of the environment"
    assert load_config(path, overrides=["vars.BASE=/c"], environ={"BASE": "/b"}).notices == ()


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "slurm:\n  comment: ${BASE_DRI}/x\n",
            [
                "config.yaml:20: slurm.comment: ${BASE_DRI} is not defined; did you mean BASE_DIR? "
                "Or set it under vars:, with --set vars.BASE_DRI=..., or in the environment"
            ],
        ),
        (
            "vars: {A: '${B}', B: '${C}', C: '${B}'}\nslurm:\n  comment: ${A}\n  account: ${B}\n",
            [
                "config.yaml:19: vars.B: refers to itself: B -> C -> B",
            ],
        ),
        (
            "slurm:\n  comment: ${HOME:-x}\n",
            [
                "config.yaml:20: slurm.comment = ${HOME:-x}: ${HOME:-x} is no reference: "
                "write ${NAME}, or $${ for a literal ${"
            ],
        ),
        ("vars: {A: [1]}\nslurm:\n  comment: ${A}\n", ["config.yaml:19: vars.A: must be one text"]),
        ("vars: 3\n", ["config.yaml:19: vars = 3: is a section of names and texts"]),
    ],
)
def test_a_reference_without_a_value_is_one_problem(write_config: WriteConfig, text: str, problems: list[str]) -> None:
    assert errors_of(write_config(text, append=True), environ={"BASE_DIR": "/d", "HOME": "/h"}) == problems


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run.seed", "is written --set section.name=value"),
        ("=3", "is written --set section.name=value"),
        ("run..seed=3", "is written --set section.name=value"),
        ("run=3", "names a section; write run.name=value"),
        ("seed=3", "names no section; write run.seed"),
        ("time_limit=3", "names no section; write slurm.time_limit or cast.time_limit or convert.time_limit"),
        ("nonsense=3", "names no section; write section.name=value"),
        ("run.seed=[1", "the value is not YAML: expected ',' or ']', but got '<stream end>'; put it in quotes"),
        ("rum.seed=1", "rum: unknown section; did you mean run?"),
        ("run.sed=1", "unknown key; did you mean seed?"),
    ],
)
def test_a_wrong_override_is_said_as_it_was_typed(write_config: WriteConfig, override: str, problem: str) -> None:
    assert errors_of(write_config(), overrides=[override]) == [f"--set {override}: {problem}"]


printable = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | printable,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
        max_leaves=6,
    )
)
def test_an_override_reads_every_value_that_is_written_as_json(value: object) -> None:
    layer, problems = read_override(f"slurm.extra={json.dumps(value, ensure_ascii=False)}")
    assert problems == []
    assert layer.values == {"slurm": {"extra": value}}


keys = st.sampled_from("abc")
trees = st.recursive(st.integers(0, 9), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8)
layers = st.dictionaries(keys, st.dictionaries(keys, trees, max_size=3), max_size=3)


def merged(lower: object, upper: object) -> object:
    """Deep merge, written the obvious way."""
    if not (isinstance(lower, dict) and isinstance(upper, dict)):
        return upper
    return {key: merged(lower.get(key), upper[key]) if key in upper else lower[key] for key in lower | upper}


@given(layers, layers)
def test_an_overlay_is_a_deep_merge(lower: dict[str, object], upper: dict[str, object]) -> None:
    below, above = Layer(Origin("below")), Layer(Origin("above"))
    below.overlay(Layer(Origin("below"), lower))
    above.overlay(Layer(Origin("above"), upper))
    below.overlay(above)
    assert below.values == merged(lower, upper)
    for path, origin in below.origins.items():
        if above.value_at(path) is not None and not isinstance(above.value_at(path), dict):
            assert origin.label == "above"
