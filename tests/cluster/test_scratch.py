"""The scratch directory of a node: private, short, found again by its owner's mark."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.leftovers import end_earlier_attempts
from r1hpc.cluster.scratch import keep_ray_logs, make_scratch, remove_scratch, scratch_of_run

RUN_ID = f"scratch-test-{os.getpid()}"


def _marks(attempt: str) -> dict[str, str]:
    return {"R1HPC_RUN": RUN_ID, "R1HPC_ATTEMPT": attempt}


@pytest.fixture(autouse=True)
def cleaned() -> Iterator[None]:
    yield
    for path in scratch_of_run(RUN_ID):
        remove_scratch(path)


def test_it_is_private_short_and_replaces_what_a_killed_agent_left() -> None:
    first = make_scratch(f"{RUN_ID}/node01", _marks("/a"))
    assert first.stat().st_mode & 0o777 == 0o700
    (first / "left").touch()
    assert make_scratch(f"{RUN_ID}/node01", _marks("/a")) == first
    assert not (first / "left").exists()
    assert len(str(first)) + len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store") <= 107
    assert make_scratch(f"{RUN_ID}/node02", _marks("/a")) != first


def test_a_long_temporary_directory_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert make_scratch(f"{RUN_ID}/node01", _marks("/a")).parent == Path("/tmp")


def test_earlier_attempts_lose_theirs_and_this_one_keeps_its_own() -> None:
    old = make_scratch(f"{RUN_ID}/1-r0/node01", _marks("/attempts/1-r0"))
    new = make_scratch(f"{RUN_ID}/1-r1/node01", _marks("/attempts/1-r1"))
    assert scratch_of_run(RUN_ID) == {old: "/attempts/1-r0", new: "/attempts/1-r1"}
    end_earlier_attempts(RUN_ID, Path("/attempts/1-r1"))
    assert scratch_of_run(RUN_ID) == {new: "/attempts/1-r1"}
    assert not old.exists()


def test_what_cannot_be_removed_stays_with_its_owners_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = make_scratch(f"{RUN_ID}/node01", _marks("/a"))
    (scratch / "ray" / "sockets").mkdir(parents=True)
    (scratch / "link").symlink_to(scratch / "ray")
    # As where a file system does not let go of it; root may remove whatever the modes say.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    remove_scratch(scratch)
    assert sorted(path.name for path in scratch.iterdir()) == ["owner.json", "ray"]
    assert scratch_of_run(RUN_ID) == {scratch: "/a"}
    monkeypatch.undo()
    remove_scratch(scratch)
    assert not scratch.exists()
    remove_scratch(scratch)


def test_only_the_ends_of_rays_own_logs_are_kept(tmp_path: Path) -> None:
    session = tmp_path / "scratch" / "ray" / "session_2026-11-23_10-00-00_000000_7"
    logs = session / "logs"
    logs.mkdir(parents=True)
    (session.parent / "session_latest").symlink_to(session)
    (logs / "raylet.out").write_bytes(b"a" * 5 + b"b" * (1 << 20))
    (logs / "empty.err").touch()
    (logs / "events").mkdir()
    os.mkfifo(logs / "pipe.out")
    elsewhere = tmp_path / "id_rsa"
    elsewhere.write_text("private")
    (logs / "gcs_server.out").symlink_to(elsewhere)
    planted = session.with_name("session_planted")
    (tmp_path / "home" / "logs").mkdir(parents=True)
    (tmp_path / "home" / "logs" / "notes.txt").write_text("private")
    planted.symlink_to(tmp_path / "home")
    keep_ray_logs(tmp_path / "scratch", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["raylet.out"]
    assert (tmp_path / "kept" / "raylet.out").read_bytes() == b"b" * (1 << 20)
