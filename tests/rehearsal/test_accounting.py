"""`sacct` on the private cluster."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal import accounting
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import Kind
from r1hpc.rehearsal.version import missing_programs, require_programs
from tests.conftest import ClusterFactory

pytestmark = pytest.mark.slurm


def test_finished_job_is_accounted_for_with_its_gpus(
    make_cluster: ClusterFactory, wait_for: Callable[[Callable[[], object], float], None]
) -> None:
    if missing := missing_programs(accounting.PROGRAMS):
        pytest.skip(f"not installed: {', '.join(missing)}")
    cluster = make_cluster(nodes=2, kind=Kind.LOOPBACK, accounting=True)
    submit = ["sbatch", "--parsable", "--wait", "-N2", "--gpus-per-node=8", "-o", "/dev/null", "--wrap", "exit 3"]
    job = cluster.run(submit).stdout.strip()

    def record() -> list[str]:
        query = ["sacct", "-X", "--noheader", "--parsable2", "-j", job, "-o", "JobID,State,ExitCode,AllocTRES"]
        return cluster.run(query, check=True).stdout.strip().split("|")

    wait_for(lambda: record()[1:3] == ["FAILED", "3:0"], 15)
    assert "gres/gpu=16" in record()[3].split(",")


def test_without_slurmdbd_sacct_says_so(loopback4: RehearsalCluster) -> None:
    result = loopback4.run(["sacct"])
    assert result.returncode == 1
    assert "accounting storage is disabled" in result.stderr


def test_missing_program_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(RehearsalError, match=r"not installed: no-such-dbd; .*apt-get install .* slurmdbd mariadb"):
        require_programs(["sh", "no-such-dbd"], accounting.PACKAGES)
