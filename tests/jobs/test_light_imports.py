"""What agents import: a signal that comes before their handlers are in place would end the attempt without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "mpi4py", "numpy", "sglang", "megatron", "pydantic", "submitit"}


def _imports(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HOME, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_unpickling_the_job_loads_nothing_of_ours_but_itself() -> None:
    loaded = _imports("import jobs.train")
    assert {name for name in loaded if name.startswith("r1hpc")} <= {"r1hpc", "r1hpc.exit_codes"}
    assert HEAVY & loaded == set()


@pytest.mark.parametrize("module", ["r1hpc.cluster.agent", "r1hpc.cluster.launch", "jobs.identity"])
def test_an_agent_loads_nothing_heavy_even_later(module: str) -> None:
    loaded = _imports(f"import {module}")
    assert module in loaded
    assert HEAVY & loaded == set()


def test_the_preflight_meets_mpi_only_in_its_child() -> None:
    loaded = _imports("import jobs.preflight")
    assert {"mpi4py", "torch", "ray", "sglang", "megatron"} & loaded == set()
