"""Which mpiexec starts ranks without Slurm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from r1hpc.cluster.hydra import hydra_mpiexec
from r1hpc.errors import ClusterError


def test_that_of_this_environment_is_taken() -> None:
    assert hydra_mpiexec() == str(Path(sys.executable).with_name("mpiexec"))


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("echo 'mpiexec (OpenRTE) 4.1.6'", "--version says 'mpiexec (OpenRTE) 4.1.6'"),
        ("exit 3", "says 'nothing, exit code 3'"),
        (None, "neither beside this Python nor on PATH"),
    ],
)
def test_another_mpis_is_refused_by_its_name(
    program: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program is not None:
        mpiexec = tmp_path / "bin" / "mpiexec"
        mpiexec.parent.mkdir()
        mpiexec.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
        mpiexec.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ClusterError, match="pip install mpich mpi4py") as refused:
        hydra_mpiexec(str(tmp_path / "python3"))
    assert said in str(refused.value)
