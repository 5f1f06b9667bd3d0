"""What each side takes when it wakes, worked by hand for R1 on 128 GPUs."""

from __future__ import annotations

from pathlib import Path

from r1hpc.colocate.needs import WakingNeeds
from r1hpc.config import load_config
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.plan import make_plan

CONFIGS = Path(__file__).parents[2] / "configs"


def test_trainers_take_weights_and_gradients_and_engines_what_their_release_gave_back() -> None:
    config = load_config(CONFIGS / "r1.yaml", environ={}).config
    plan = make_plan(config, read_model_shape(CONFIGS / "models" / "deepseek-r1"))
    needs = WakingNeeds.of(plan)
    # bf16 weights and float32 gradients; the optimizer lies in host memory. 32 ranks a stage.
    assert needs.trainers == tuple(6 * stage.parameters for stage in plan.stages for _ in range(32))
    assert needs.trainers[0] == 6 * 5_526_487_040
    # All GPUs run an equal part of an engine: 17.13 GB of weights, 23.53 GB of cache, 6.66 GB of graphs.
    assert len(set(needs.engines)) == 1
    assert round(needs.engines[0] / 1e9, 2) == 47.32
