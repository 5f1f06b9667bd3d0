"""Where the model of the rehearsal lies in the repository, and its way into a work directory. Loads no torch."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from r1hpc.errors import RehearsalError
from r1hpc.publish import fsync_directory

ARITHMETIC_R1 = Path(__file__).resolve().parents[2] / "configs/models/arithmetic-r1"
"""A whole checkpoint as `python -m r1hpc.rehearsal.teach` wrote it: the tiny R1, taught small sums."""


def place_model(target: Path) -> None:
    """Copy the checkpoint to the directory `target`, which is not there yet and comes whole or not at all.

    Raises RehearsalError where it cannot be read or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as beside:
            copy = Path(beside) / "copy"
            shutil.copytree(ARITHMETIC_R1, copy, copy_function=shutil.copyfile)
            copy.rename(target)
        fsync_directory(target.parent)
    except OSError as error:
        raise RehearsalError(f"{target}: the model cannot be copied from {ARITHMETIC_R1} ({error})") from error
