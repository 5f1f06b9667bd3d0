"""No field of Megatron is taken and then does nothing: each acts, or gives a notice, or is refused with a reason."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from itertools import combinations
from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.config.__main__ import main
from r1hpc.config.libraries import megatron_fields
from r1hpc.config.owned import MEGATRON_OWNED
from r1hpc.config.portable import PASSED, SETTLED
from r1hpc.config.structure import owners
from r1hpc.errors import ConfigError
from r1hpc.exit_codes import SUCCESS

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

needs_megatron = pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")

OF_SCRIPTS = {
    "use_flash_attn",
    "use_mcore_models",
    "no_rope_fusion",
    "no_masked_softmax_fusion",
    "no_gradient_accumulation_fusion",
}
"""Flags of Megatron's launch scripts that are no field of its config."""
OLDER_NAMES = {"bf16", "moe_enable_deepep", "moe_deepep_num_sms"}
"""Fields that are read as another key."""
EXAMPLES: dict[str, object] = {
    "moe_router_dtype": "fp32",
    "recompute_modules": ["layernorm", "mlp", "moe", "shared_experts"],
    "moe_flex_dispatcher_num_sms": 24,
}
"""A value of each field that is passed on and is not true or false."""
SETTLED_FIELDS = {name: group for group in SETTLED for name in group.fields}


@needs_megatron
def test_every_field_has_one_place() -> None:
    """With another version of Megatron this names what to decide about."""
    places = {
        "schema": {name for name in megatron_fields() or () if owners(name)},
        "refused": set(MEGATRON_OWNED),
        "settled": SETTLED_FIELDS.keys() - OF_SCRIPTS,
        "passed on": set(PASSED),
        "older": OLDER_NAMES,
    }
    for one, other in combinations(places, 2):
        assert not places[one] & places[other], f"{one} and {other}"
    of_config = {"num_experts", "disable_bias_linear", "vocab_size"} & set(MEGATRON_OWNED)
    fields = {name.lower() for name in megatron_fields() or ()}  # as keys are read
    assert len(of_config) == 3 and not of_config & fields  # flags of scripts that describe the model
    assert fields - set().union(*places.values()) == set()
    assert (places["settled"] | places["passed on"]) - fields == set()


def refused(write_config: WriteConfig, name: str, value: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=[f"megatron.{name}={json.dumps(value)}"], environ={})
    (problem,) = caught.value.problems
    return problem


def section(values: dict[str, object]) -> str:
    return "megatron:\n" + "".join(f"  {name}: {json.dumps(value)}\n" for name, value in values.items())


@pytest.mark.parametrize("choice", [0, 1, -1])
def test_a_settled_value_gives_a_notice_and_reaches_no_one(
    write_config: WriteConfig, choice: int, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {}
    for name, group in SETTLED_FIELDS.items():
        accepted = group.only or (True, "anything", 3)
        values[name] = accepted[choice % len(accepted)]
    assert len(values) > 70
    path = write_config(section(values), append=True)
    assert main(["check", str(path)]) == SUCCESS
    said = [notice.split(": ", 2)[2] for notice in capsys.readouterr().err.splitlines()]
    assert said == [f"megatron.{name} is accepted without effect: {g.why}" for name, g in SETTLED_FIELDS.items()]
    assert load_config(path, environ={}).config == load_config(write_config(), environ={}).config


def test_what_would_not_happen_is_refused_with_the_reason(write_config: WriteConfig) -> None:
    groups = {name: group for name, group in SETTLED_FIELDS.items() if group.only}
    assert len(groups) > 15
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(section(dict.fromkeys(groups, "other")), append=True), environ={})
    told = zip(caught.value.problems, groups.items(), strict=True)
    for problem, (name, group) in told:
        assert f'megatron.{name} = "other": only ' in problem
        assert problem.endswith(f" accepted: {group.why}")


def test_a_refused_field_says_what_decides_it(write_config: WriteConfig) -> None:
    assert len(MEGATRON_OWNED) > 150
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(section(dict.fromkeys(MEGATRON_OWNED, 1)), append=True), environ={})
    assert [problem.split(": ", 1)[1] for problem in caught.value.problems] == [
        f"megatron.{name} = 1: cannot be set here: {reason}" for name, reason in MEGATRON_OWNED.items()
    ]


def test_true_is_not_one(write_config: WriteConfig) -> None:
    assert "only 1 is accepted" in refused(write_config, "mlp_chunks_for_training", True)
    assert "only false is accepted" in refused(write_config, "deterministic_mode", 0)
    assert "only none, aux_loss, seq_aux_loss or global_aux_loss is accepted" in refused(
        write_config, "moe_router_load_balancing_type", "sinkhorn"
    )


@needs_megatron
@pytest.mark.parametrize("name", PASSED)
def test_a_field_that_acts_is_passed_on_without_a_notice(write_config: WriteConfig, name: str) -> None:
    value = EXAMPLES.get(name, True)
    overrides = [f"megatron.{name}={json.dumps(value)}"]
    if name == "recompute_modules":
        overrides.append("perf.recompute_granularity=selective")
    loaded = load_config(write_config(), overrides=overrides, environ={})
    assert loaded.notices == ()
    assert loaded.config.megatron.passed_through == {name: value}


@needs_megatron
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bias_dropout_fusion", "yes", "true or false"),
        ("moe_router_dtype", "fp64", "fp32"),
        ("moe_flex_dispatcher_num_sms", 0, "whole number, at least 1"),
        ("recompute_modules", ["core_attn"], "list of layernorm or mla_up_proj or mlp or moe or shared_experts"),
        ("recompute_modules", "moe", "list of layernorm or mla_up_proj or mlp or moe or shared_experts"),
    ],
)
def test_a_field_that_acts_takes_what_it_can_act_on(
    write_config: WriteConfig, name: str, value: object, expected: str
) -> None:
    overrides = [f"megatron.{name}={json.dumps(value)}", "perf.recompute_granularity=selective"]
    if name != "recompute_modules":
        overrides.append("megatron.recompute_modules=[moe]")
    with pytest.raises(ConfigError) as caught:
        load_config(write_config(), overrides=overrides, environ={})
    assert caught.value.problems == [f"--set {overrides[0]}: expected: {expected}"]


def test_fields_are_settled_where_megatron_is_not_installed_too(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.delitem(sys.modules, "megatron", raising=False)
    loaded = load_config(write_config(), overrides=["megatron.moe_permute_fusion=true"], environ={})
    (notice,) = loaded.notices
    assert "accepted without effect" in notice
    assert "cannot be set here" in refused(write_config, "qk_clip", True)


def test_explain_says_which_value_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "megatron.moe_router_bias_update_rate"]) == SUCCESS
    assert capsys.readouterr().out == (
        "megatron.moe_router_bias_update_rate\n"
        "  accepted without effect: the experts' bias is frozen: the engine routes by the same one\n"
        "  takes    only 0\n"
    )
