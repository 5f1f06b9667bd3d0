"""Plans of the two configurations that the project ships, and a way to plan them with other values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.config import Config, load_config
from r1hpc.plan import ModelShape, Plan, PlanError, plan_for, read_model_shape

ROOT = Path(__file__).parents[2]
R1 = ROOT / "configs" / "r1.yaml"
REHEARSAL = ROOT / "tests" / "pipeline.yaml"

PlanWith = Callable[..., Plan]


@pytest.fixture(scope="session")
def r1_config() -> Config:
    return load_config(R1).config


@pytest.fixture(scope="session")
def r1_shape() -> ModelShape:
    return read_model_shape(ROOT / "configs" / "models" / "deepseek-r1" / "config.json")


@pytest.fixture(scope="session")
def tiny_shape() -> ModelShape:
    return read_model_shape(ROOT / "configs" / "models" / "tiny-r1" / "config.json")


@pytest.fixture(scope="session")
def r1_plan() -> Plan:
    return plan_for(load_config(R1), num_prompts=17_400)


@pytest.fixture(scope="session")
def rehearsal_plan() -> Plan:
    return plan_for(load_config(REHEARSAL))


@pytest.fixture
def plan_r1() -> PlanWith:
    """Plan r1.yaml with overrides: plan_r1("hosts.num_nodes=32")."""
    return lambda *overrides: plan_for(load_config(R1, overrides=overrides))


@pytest.fixture
def plan_rehearsal() -> PlanWith:
    """Plan tests/pipeline.yaml with overrides."""
    return lambda *overrides: plan_for(load_config(REHEARSAL, overrides=overrides))


@pytest.fixture
def refusal() -> Callable[..., str]:
    """The text that refuses a plan: refusal(plan_r1, "hosts.num_nodes=15")."""

    def text_of(plan: PlanWith, *overrides: str) -> str:
        with pytest.raises(PlanError) as caught:
            plan(*overrides)
        return str(caught.value)

    return text_of
