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
    "said",
    [
        "HYDRA build details:\n    Version:                                 5.0.2",
        "Intel(R) MPI Library for Linux* OS, Version 2021.13 Build 20240701 (id: 179630a)",
    ],
)
def test_hydra_is_known_by_what_it_says(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpiexec = tmp_path / "mpiexec"
    mpiexec.write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
    mpiexec.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hydra_mpiexec(str(tmp_path / "elsewhere" / "python3")) == str(mpiexec)


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
