"""The trainer on two GPUs, NCCL between them: the same gradients as on one, and checkpoints that resume."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from r1hpc.types import Sample
from tests.rollout.conftest import _free_ports
from tests.train.parity.run import Case, Grid, Models, assemble, worst
from tests.train.process_groups_soak import RebuildCase

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.device_count() < 2 or torch.cuda.get_device_capability() < (9, 0),
        reason="needs two NVIDIA GPUs of compute capability 9.0 or more",
    ),
]

HOME = Path(__file__).resolve().parents[2]
DEADLINE_S = 180


@pytest.mark.parametrize(
    "grid",
    [Grid(tp=2, ep=2), Grid(cp=2, ep=2), Grid(pp=2, last_layers=2), Grid(dp=2, ep=2)],
    ids=lambda grid: grid.name,
)
def test_gradients_are_those_of_one_gpu_and_a_checkpoint_resumes(
    grid: Grid, models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    cases = Case(Grid(), device="cuda"), RebuildCase(grid, device="cuda")
    (one,), both = (run(case, models, samples[:8], tmp_path) for case in cases)
    found = assemble([part for rank in both for part in rank["gradient"][1]])
    assert worst(found, assemble(one["gradient"][1])) < (1e-5, "")
    for rank in both:
        assert rank["gradient"][0]["loss"] == pytest.approx(one["gradient"][0]["loss"], rel=1e-5, abs=1e-5)
        assert rank["resumed"] == pytest.approx(rank["next"], rel=1e-5, abs=1e-5)


def run(case: Case, models: Models, samples: list[Sample], scratch: Path) -> list[dict[str, Any]]:
    """What each rank found; every rank is a process with a GPU of its own."""
    world = case.grid.world_size
    (scratch / "work.pkl").write_bytes(pickle.dumps((case, models, samples, _free_ports(1, 0))))
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu.two_gpus"]
    ranks = [subprocess.Popen([*command, str(rank), str(world), str(scratch)], cwd=HOME) for rank in range(world)]
    try:
        assert [rank.wait(DEADLINE_S) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [pickle.loads((scratch / f"found-{world}-{rank}.pkl").read_bytes()) for rank in range(world)]
