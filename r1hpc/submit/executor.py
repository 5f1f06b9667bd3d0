"""submitit's Slurm executor, also where there is no Slurm: for the exact text of what would be submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor


class SbatchWriter(SlurmExecutor):
    """A SlurmExecutor that never submits."""

    @classmethod
    def affinity(cls) -> int:
        return 2  # the base class refuses to be made where there is no srun

    def text(self, num_tasks: int | None = None) -> str:
        """The sbatch file, of an array when num_tasks is given."""
        if num_tasks is not None:
            self.parameters["map_count"] = num_tasks
        return self._make_submission_file_text(self._submitit_command_str, "") + "\n"


def sbatch_text(folder: Path, python: str, parameters: dict[str, Any], num_tasks: int | None = None) -> str:
    """The exact sbatch text of a job: what --dry-run prints and what is kept in RUN/sbatch."""
    writer = SbatchWriter(folder=folder, python=python)
    writer.update_parameters(**parameters)
    return writer.text(num_tasks)
