"""Every layout computes what one process computes: loss, gradients, norm, and the masters after three steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc.types import Sample
from tests.train.parity.run import Case, Gradient, Grid, Models, Updated, gradient, update, worst

# Errors are max |difference| / max |value| of a tensor.
TOLERANCE = 1e-5
TIS_KL_ENTROPY = {"use_kl_loss": True, "kl_loss_coef": 0.05, "kl_loss_type": "low_var_kl", "entropy_coef": 0.01}
TIS_KL_ENTROPY |= {"use_tis": True, "tis_clip": 1.1, "eps_clip_high": 0.28}

GRIDS = [
    Grid(tp=4),
    Grid(tp=4, ep=4),
    Grid(cp=4),
    Grid(pp=4, first_layers=2),
    Grid(ep=4, dp=4),
    Grid(ep=2, dp=4),
    Grid(tp=2, pp=2, cp=2, ep=4, last_layers=2),
    Grid(tp=2, ep=4, dp=2),
]
OPTIMIZER_GRIDS = [grid for grid in GRIDS if grid not in (Grid(tp=4), Grid(cp=4), Grid(pp=4, first_layers=2))]
"""Those three divide optimizer and norm as one of these does, and what they put into it the gradients tell."""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def one(models: Models, samples: list[Sample], scratch: Path) -> Gradient:
    return gradient(Case(grpo=TIS_KL_ENTROPY, temperature=0.8), models, samples[:8], scratch)


@pytest.fixture(scope="module")
def one_updated(models: Models, samples: list[Sample], scratch: Path) -> Updated:
    return update(Case(grpo=TIS_KL_ENTROPY, steps=3), models, samples, scratch)


def agrees(found: Gradient, expected: Gradient) -> None:
    assert max(float(tensor.abs().max()) for tensor in expected.tensors.values()) > 1e-2
    assert found.metrics == pytest.approx(expected.metrics, rel=TOLERANCE, abs=TOLERANCE)
    assert worst(found.tensors, expected.tensors) < (TOLERANCE, "")


@pytest.mark.parametrize("grid", GRIDS, ids=[grid.name for grid in GRIDS])
def test_the_gradient_is_that_of_one_process(
    grid: Grid, models: Models, samples: list[Sample], one: Gradient, scratch: Path
) -> None:
    agrees(gradient(Case(grid, grpo=TIS_KL_ENTROPY, temperature=0.8), models, samples[:8], scratch), one)


@pytest.mark.parametrize("grid", OPTIMIZER_GRIDS, ids=[grid.name for grid in OPTIMIZER_GRIDS])
def test_three_steps_end_where_those_of_one_process_end(
    grid: Grid, models: Models, samples: list[Sample], one_updated: Updated, scratch: Path
) -> None:
    found = update(Case(grid, grpo=TIS_KL_ENTROPY, steps=3), models, samples, scratch)
    for step, expected in zip(found.stats.steps, one_updated.stats.steps, strict=True):
        assert step.grad_norm == pytest.approx(expected.grad_norm, rel=TOLERANCE)
        assert step.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert worst(found.tensors, one_updated.tensors) < (TOLERANCE, "")


@pytest.mark.parametrize("grid", [Grid(), Grid(tp=2, pp=2, cp=2, ep=4, last_layers=2)], ids=["one", "tp2-pp2-cp2-ep4"])
def test_recomputation_changes_nothing(
    grid: Grid, models: Models, samples: list[Sample], one: Gradient, scratch: Path
) -> None:
    case = Case(grid, grpo=TIS_KL_ENTROPY, temperature=0.8, recompute=True)
    agrees(gradient(case, models, samples[:8], scratch), one)


@pytest.mark.parametrize("max_tokens", [None, 40, 10_000])
def test_packing_changes_nothing(
    max_tokens: int | None, models: Models, samples: list[Sample], one: Gradient, scratch: Path
) -> None:
    case = Case(grpo=TIS_KL_ENTROPY, temperature=0.8, max_tokens=max_tokens)
    agrees(gradient(case, models, samples[:8], scratch), one)


def test_per_token_normalization_is_the_same_on_any_layout(
    models: Models, samples: list[Sample], one: Gradient, scratch: Path
) -> None:
    case = Case(grpo=TIS_KL_ENTROPY | {"calculate_per_token_loss": True}, temperature=0.8)
    alone = gradient(case, models, samples[:8], scratch)
    assert worst(alone.tensors, one.tensors)[0] > 1e-2  # it is another loss
    for grid in (Grid(tp=2, pp=2, cp=2, ep=4, last_layers=2), Grid(ep=2, dp=4)):
        agrees(gradient(replace(case, grid=grid), models, samples[:8], scratch), alone)
