"""What is refused before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.layout import LONGEST_SOCKET, Layout
from r1hpc.rehearsal.record import read_record
from r1hpc.rehearsal.spec import ClusterSpec, Kind, default_directory


@pytest.mark.parametrize("nodes", [0, 201])
def test_number_of_nodes_has_limits(nodes: int) -> None:
    with pytest.raises(RehearsalError, match=rf"--nodes {nodes}: .* 1 to 200 nodes"):
        ClusterSpec(directory=Path("/srv/private"), nodes=nodes)


def test_requeue_wait_that_slurm_would_silently_make_120_seconds_is_refused() -> None:
    with pytest.raises(RehearsalError, match=r"--cred-expire-s 4: at least 5: .* 120 s"):
        ClusterSpec(directory=Path("/srv/private"), cred_expire_s=4)


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="vm"):
        ClusterSpec(directory=Path("/srv/private"), kind="vm")  # type: ignore[arg-type]


def test_tmp_itself_cannot_be_shared() -> None:
    with pytest.raises(RehearsalError, match="not /tmp itself"):
        ClusterSpec(directory=Path("/srv/private"), share=(Path("/tmp"),))


def test_spec_survives_its_record(tmp_path: Path) -> None:
    spec = ClusterSpec(directory=Path("/srv/private"), nodes=7, kind=Kind.LOOPBACK, share=(tmp_path,), grace_s=1)
    assert ClusterSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_differences_name_fields_with_both_values() -> None:
    mine = ClusterSpec(directory=Path("/srv/private"), nodes=4)
    theirs = ClusterSpec(directory=Path("/srv/private"), nodes=2, grace_s=1)
    assert mine.differences(theirs) == ["nodes: 4 -> 2", "grace_s: 10 -> 1"]


def test_default_directory_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/ada")
    assert default_directory() == Path("/var/cache/ada/r1hpc/rehearsal")


def test_identity_differs_between_directories_and_stays() -> None:
    one, other = Layout(Path("/srv/one")), Layout(Path("/srv/other"))
    assert one.identity == Layout(Path("/srv/one")).identity != other.identity
    assert one.cluster_name == f"r1hpc-{one.identity}"


def test_directory_too_long_for_a_socket_is_refused_with_the_sum() -> None:
    # 107 bytes in all, less the slash and slurmstepd's name in the spool directory.
    longest = 107 - 1 - len(LONGEST_SOCKET)
    Layout(Path("/" + "d" * (longest - 1))).check(Kind.LOOPBACK)
    with pytest.raises(RehearsalError, match=rf"{longest + 1} bytes \+ {1 + len(LONGEST_SOCKET)} .* = 108"):
        Layout(Path("/" + "d" * longest)).check(Kind.LOOPBACK)


def test_namespace_cluster_under_tmp_is_refused() -> None:
    with pytest.raises(RehearsalError, match="under /tmp"):
        Layout(Path("/tmp/cluster")).check(Kind.NAMESPACE)
    Layout(Path("/tmp/cluster")).check(Kind.LOOPBACK)


def test_directory_with_other_files_is_refused_and_never_cleared(cluster_base: Path) -> None:
    precious = cluster_base / "home"
    (precious / "run").mkdir(parents=True)
    (precious / "run" / "thesis.tex").write_text("all of it")
    layout = Layout(precious)
    with pytest.raises(RehearsalError, match="holds files that are no private cluster's"):
        layout.check(Kind.LOOPBACK)
    layout.clear()
    assert (precious / "run" / "thesis.tex").read_text() == "all of it"


def test_unreadable_record_says_what_to_do(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert read_record(layout) is None
    layout.record.parent.mkdir()
    layout.record.write_text('{"spec": {}}')
    with pytest.raises(RehearsalError, match="run `down` first"):
        read_record(layout)
