"""Which Slurm is installed, and where its programs are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from r1hpc.errors import RehearsalError

# Daemons live in sbin, which an ordinary user's PATH often lacks.
SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")

SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "squeue", "scontrol", "sbatch", "srun")
SLURM_PACKAGES = "slurm-wlm munge"


class SlurmVersion(NamedTuple):
    """The major and minor number of a Slurm release: 22.05.8 is (22, 5)."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor:02d}"


def search_path() -> str:
    """Return PATH with the sbin directories after it."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])


def missing_programs(names: Sequence[str]) -> list[str]:
    """Return the programs of `names` that are not installed."""
    path = search_path()
    return [name for name in names if shutil.which(name, path=path) is None]


def require_programs(names: Sequence[str], packages: str) -> None:
    """Raise RehearsalError with the command that installs what is missing."""
    if missing := missing_programs(names):
        raise RehearsalError(
            f"not installed: {', '.join(missing)}; on Debian or Ubuntu, as root: "
            f"apt-get install --no-install-recommends {packages}"
        )


def parse_version(text: str) -> SlurmVersion:
    """Read what `slurmctld -V` prints, e.g. `slurm-wlm 22.05.8` or `slurm 24.11.0-0rc1`."""
    match = re.search(r"\b(\d\d)\.(\d\d)(?:\.|\b)", text)
    if match is None:
        raise RehearsalError(f"slurmctld -V printed {text.strip()!r}, which has no version of the form 22.05.8")
    return SlurmVersion(int(match[1]), int(match[2]))


def installed_version() -> SlurmVersion:
    """Return the version of the installed slurmctld; RehearsalError says what to install when there is none."""
    require_programs(SLURM_PROGRAMS, SLURM_PACKAGES)
    program = shutil.which("slurmctld", path=search_path())
    assert program is not None, "require_programs found it"
    result = subprocess.run([program, "-V"], capture_output=True, text=True, timeout=10)
    return parse_version(result.stdout + result.stderr)
