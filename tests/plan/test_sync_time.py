"""How long a sync takes, by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.plan import Plan, plan_for, render_plan

PlanWith = Callable[..., Plan]
GPU1 = Path(__file__).parents[2] / "configs" / "gpu1.yaml"


def test_r1_on_128_gpus(r1_plan: Plan) -> None:
    time = r1_plan.sync.time
    assert time is not None
    # By the ranks that have most of a payload to read, and into the GPUs that are given most of it.
    assert time.read_s == pytest.approx(2.2 * 1.342e12 / 128 / 38e9, rel=1e-3)
    assert time.experts_s == pytest.approx(10.2e9 / 50e9, rel=5e-3)
    # Into a node once, over the links of its 8 GPUs; then into every GPU.
    assert time.dense_s == pytest.approx(19.1e9 / (8 * 50e9) + 19.1e9 / 300e9, rel=5e-3)
    assert time.load_s == pytest.approx(29.3e9 / 46e9 / 0.74, rel=5e-3)
    assert r1_plan.sync.payloads == 74 and time.payloads_s == pytest.approx(0.74)
    assert time.seconds == pytest.approx(max(0.607 + 0.205 + 0.111, 0.861) + 0.74, abs=0.01)
    assert "in 74 payloads: about 1.7 s" in " ".join(render_plan(r1_plan).split())


def test_smaller_payloads_are_more(plan_r1: PlanWith) -> None:
    sync = plan_r1("sync.bucket_mib=128").sync
    assert sync.payloads == 295 and sync.time is not None and sync.time.payloads_s == pytest.approx(2.95)


def test_one_gpu_has_no_links() -> None:
    """0.11 to 0.13 s were measured of a run (docs/performance.md)."""
    time = plan_for(load_config(GPU1)).sync.time
    assert time is not None
    assert time.experts_s == time.dense_s == 0
    assert time.seconds == pytest.approx(0.12, rel=0.3)


def test_a_rehearsal_has_no_estimate(rehearsal_plan: Plan) -> None:
    assert rehearsal_plan.sync.time is None
    assert "about" not in " ".join(render_plan(rehearsal_plan).split("sync ")[-1].splitlines()[:3])
