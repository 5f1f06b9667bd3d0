"""docs/flags.md says the truth: every flag of the recipe once, by code and tests that exist, and as the loader acts."""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.config.aliases import aliases_by_key
from r1hpc.config.bash_script import Flag as Read
from r1hpc.config.bash_script import read_script
from r1hpc.config.flags import ARRAYS, ELSEWHERE, Flag, Kind
from r1hpc.config.flags_page import flags_page
from r1hpc.config.structure import section_fields
from r1hpc.errors import ConfigError

ROOT = Path(__file__).parents[2]
R1 = ROOT / "configs" / "r1.yaml"
RECIPE = Path(__file__).parent / "data" / "deepseek-r1-arrays.sh"
FLAGS = [flag for flags in {**ARRAYS, **ELSEWHERE}.values() for flag in flags]
NO_EFFECT = [flag for flag in FLAGS if flag.kind is Kind.NO_EFFECT]
REFUSED = [override for flag in FLAGS for override in flag.refused]


def recipe() -> list[Read]:
    flags = read_script(RECIPE.read_text(encoding="utf-8"), str(RECIPE)).flags
    assert len(flags) == 59
    return list(flags)


def test_the_page_is_in_step_with_the_table() -> None:
    assert (ROOT / "docs" / "flags.md").read_text(encoding="utf-8") == flags_page()


def test_every_flag_of_the_recipe_has_one_row_with_its_value() -> None:
    written = [(read.array, read.name, " ".join(read.values).replace("${BASE_DIR}", "$BASE_DIR")) for read in recipe()]
    assert [(array, flag.flag, flag.value) for array, flags in ARRAYS.items() for flag in flags] == written
    assert len({flag.key for flag in FLAGS}) == len(FLAGS)


def test_flags_outside_the_arrays_are_no_flags_of_them() -> None:
    keys = {flag.key for flags in ARRAYS.values() for flag in flags}
    others = [flag for flags in ELSEWHERE.values() for flag in flags]
    assert len(others) == 9
    assert not keys & {flag.key for flag in others}


def test_the_key_is_one_of_the_schema_or_an_older_name() -> None:
    for flag in FLAGS:
        section, _, name = flag.key.partition(".")
        assert flag.flag.replace("-", "_").removeprefix("sglang_") == name
        assert name in section_fields(section) or flag.key in aliases_by_key(), flag.key


def defined(path: Path) -> set[str]:
    """Names that a module defines, those of its classes as Class.name."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names |= set(_bound(node))
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for inner in node.body for name in _bound(inner)}
    return names


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.parametrize("reference", sorted({name for flag in FLAGS for name in flag.by}))
def test_the_code_that_is_named_is_there(reference: str) -> None:
    module, _, attribute = reference.partition(":")
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    assert not attribute or attribute in defined(Path(spec.origin))


@pytest.mark.parametrize("test", sorted({test for flag in FLAGS for test in flag.tests}))
def test_the_tests_that_are_named_are_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert name.startswith("test_")
    assert name in defined(ROOT / path)


def test_what_is_done_names_code_and_what_cannot_be_otherwise_names_its_test() -> None:
    for flag in FLAGS:
        assert flag.by, flag.key
        assert flag.tests or flag.kind is Kind.NO_EFFECT, flag.key
        assert flag.refused or flag.kind is not Kind.BUILT_IN, flag.key


@pytest.mark.parametrize("flag", NO_EFFECT, ids=lambda flag: flag.key)
def test_a_flag_without_effect_gives_a_notice_and_changes_nothing(flag: Flag) -> None:
    override = f"{flag.key}={flag.value or 1}"
    loaded = load_config(R1, overrides=[override], environ={})
    (notice,) = loaded.notices
    assert notice.startswith(f"--set {override}: {flag.key} is accepted without effect: ")
    assert loaded.config == load_config(R1, environ={}).config


@pytest.mark.parametrize("override", REFUSED)
def test_a_refused_value_is_refused_with_a_reason(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(R1, overrides=[override], environ={})
    name = override.partition("=")[0].partition(".")[2]
    told = [problem for problem in caught.value.problems if name in problem.removeprefix(f"--set {override}: ")]
    assert told or any(problem.startswith(f"--set {override}: ") for problem in caught.value.problems)


def test_no_other_kind_gives_a_notice_unless_the_name_is_old() -> None:
    older = {flag.key for flag in FLAGS if flag.kind is not Kind.NO_EFFECT and flag.key in aliases_by_key()}
    assert older == {"sglang.enable_ep_moe", "sglang.enable_deepep_moe", "megatron.moe_enable_deepep"}
    assert load_config(R1, environ={}).notices == ()
