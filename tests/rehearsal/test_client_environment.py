"""The environment of client commands: nothing of an enclosing job, nothing of the site's Slurm."""

from __future__ import annotations

from pathlib import Path

from r1hpc.rehearsal.client import private_environment
from r1hpc.rehearsal.layout import Layout

LAYOUT = Layout(Path("/srv/private"))


def test_variables_of_another_slurm_are_scrubbed() -> None:
    inherited = {
        "SLURM_CONF": "/etc/slurm/slurm.conf",
        "SLURM_JOB_ID": "17",
        "SLURMD_NODENAME": "node99",
        "SBATCH_ACCOUNT": "physics",
        "SQUEUE_FORMAT": "%i",
        "SINFO_FORMAT": "%n",
        "SRUN_CPUS_PER_TASK": "3",
        "SALLOC_PARTITION": "gpu",
        "SCANCEL_STATE": "PENDING",
        "SACCT_FORMAT": "jobid",
        "PMI_RANK": "0",
        "PMIX_RANK": "0",
    }
    environment = private_environment(LAYOUT, inherited | {"PATH": "/usr/bin", "HOME": "/home/ada"})
    assert environment == {
        "PATH": "/usr/bin",
        "HOME": "/home/ada",
        "SLURM_CONF": "/srv/private/etc/slurm.conf",
        "R1HPC_REHEARSAL": LAYOUT.identity,
    }


def test_names_that_only_resemble_slurms_are_kept() -> None:
    kept = {"MY_SLURM_JOB_ID": "1", "SLURMISH": "2", "PMI": "3", "SSH_AUTH_SOCK": "/run/ssh"}
    assert kept.items() <= private_environment(LAYOUT, kept).items()
