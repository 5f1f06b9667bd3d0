"""Hydra, the launcher of MPICH, which starts the preflight's ranks where there is no Slurm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from r1hpc.errors import ClusterError

_ANSWER_S = 30.0
_KNOWN = ("HYDRA", "Intel(R) MPI")
"""What `mpiexec --version` says where the launcher is Hydra: MPICH's and Intel MPI's."""
_FIX = "pip install mpich mpi4py into the environment of this Python"


def hydra_mpiexec(python: str = sys.executable) -> str:
    """The mpiexec beside this Python (pip install mpich), else the one on PATH.

    Raises ClusterError where there is none, or that of another MPI: Open MPI's takes other arguments.
    """
    beside = Path(shutil.which(python) or python).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise ClusterError(f"mpiexec is neither beside this Python nor on PATH: {_FIX}")
    command = [found, "--version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(f"{' '.join(command)}: {error}; {_FIX}") from error
    said = (answer.stdout + answer.stderr).strip()
    if not any(name in said for name in _KNOWN):
        first = said.splitlines()[0] if said else f"nothing, exit code {answer.returncode}"
        raise ClusterError(f"{found} is no Hydra, as MPICH and Intel MPI have it: --version says {first!r}; {_FIX}")
    return found
