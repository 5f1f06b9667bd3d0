"""Names that mean another machine on every host have no place in a hostfile."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.mpirun import refuse_localhost
from r1hpc.cluster.hostfile import read_hostfile
from r1hpc.errors import HostfileError


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_localhost_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"127.0.0.10 slots=2\n{name} slots=2\n", encoding="utf-8")
    with pytest.raises(HostfileError, match=rf"hosts:2: {name} is a different machine on every host"):
        refuse_localhost(read_hostfile(path))


def test_loopback_addresses_of_a_rehearsal_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("127.0.0.10 slots=2\n127.0.0.11 slots=2\n", encoding="utf-8")
    refuse_localhost(read_hostfile(path))
