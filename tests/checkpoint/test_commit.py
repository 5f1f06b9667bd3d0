"""Commits: what is in one, which one is the newest, and what never becomes one."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from r1hpc.checkpoint.commit import Commits, newest_commit
from r1hpc.checkpoint.commits.record import judge
from r1hpc.errors import CheckpointError
from tests.checkpoint.saves import Saved, commit, committed, save, write_rest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def names(root: Path) -> list[str]:
    return sorted(name for name in os.listdir(root) if name != ".owner.json")


def newest(root: Path) -> int | None:
    found = newest_commit(root)
    return None if found is None else found.iteration


def test_a_commit_names_every_file_with_its_size_and_hash(root: Path) -> None:
    made = commit(Commits(root, 2), 20)
    assert made.directory == root / "iter_0000020"
    content = json.loads((made.directory / "COMMITTED.json").read_text())["commit"]
    assert content["iteration"] == 20
    assert content["record"] == {"run_id": "r1", "weight_version": 21}
    assert sorted(content["files"]) == sorted(set(os.listdir(made.directory)) - {"COMMITTED.json"})
    # The weights are hashed chunk by chunk, in the manifest, whose own hash is here.
    assert content["files"]["__0_0.distcp"] == {"size": len(b"weights of rank 0 after 20"), "xxh3": None}
    for name in ("manifest.json", "trainer.json", "cursor.json"):
        data = (made.directory / name).read_bytes()
        assert content["files"][name] == {"size": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}
    assert made.record == {"run_id": "r1", "weight_version": 21}
    assert made.size_bytes == sum((made.directory / name).stat().st_size for name in content["files"])
    assert abs(made.committed_at - time.time()) < 60


def test_a_directory_that_is_not_there_has_no_commit(root: Path) -> None:
    assert newest_commit(root) is None


def test_the_newest_is_the_one_with_the_highest_iteration(root: Path) -> None:
    committed(root, 20, 9_999_999, 10_000_000, 100)
    assert newest(root) == 10_000_000


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def replace_by_link(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("nowhere")


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no COMMITTED.json": (lambda d: (d / "COMMITTED.json").unlink(), "was never committed"),
    "half of COMMITTED.json": (lambda d: os.truncate(d / "COMMITTED.json", 100), "COMMITTED.json is damaged"),
    "a bit of COMMITTED.json": (lambda d: flip(d / "COMMITTED.json"), "COMMITTED.json is damaged"),
    "empty COMMITTED.json": (lambda d: os.truncate(d / "COMMITTED.json", 0), "COMMITTED.json is damaged"),
    "COMMITTED.json of another kind": (lambda d: (d / "COMMITTED.json").write_text("[1]"), "is damaged"),
    "weights gone": (lambda d: (d / "__1_0.distcp").unlink(), "__1_0.distcp is missing"),
    "weights cut": (lambda d: os.truncate(d / "__1_0.distcp", 3), "__1_0.distcp has 3 bytes; 26 were committed"),
    "weights a directory": (lambda d: replace_by_directory(d / "__1_0.distcp"), "__1_0.distcp is no file"),
    "a bit of the manifest": (lambda d: flip(d / "manifest.json"), "manifest.json is not what was committed"),
    "a bit of the cursor": (lambda d: flip(d / "cursor.json"), "cursor.json is not what was committed"),
    "everything gone": (empty, "was never committed"),
    "a file": (replace_by_file, "Not a directory"),
    "a link to nothing": (replace_by_link, "was never committed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_by_name(damage: str, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    committed(root, 20, 40)
    work, reason = DAMAGES[damage]
    work(root / "iter_0000040")
    assert newest(root) == 20
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "passed over" in said[0]
    assert "iter_0000040" in said[0]
    assert reason in said[0]


def test_what_other_hands_put_there_is_no_commit(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    committed(root, 20)
    shutil.copytree(root / "iter_0000020", root / "iter_0000060")
    shutil.copytree(root / "iter_0000020", root / "iter_20.backup")
    (root / "iter_0000080").mkdir()
    (root / "iter_latest").mkdir()
    assert newest(root) == 20
    assert "iter_0000060: is the commit of iteration 20, renamed or copied" in caplog.text


def test_a_commit_may_be_moved_elsewhere_and_linked(root: Path, tmp_path: Path) -> None:
    committed(root, 20)
    shutil.move(root / "iter_0000020", tmp_path / "large")
    (root / "iter_0000020").symlink_to(tmp_path / "large")
    assert newest(root) == 20


def test_files_that_people_add_do_not_matter(root: Path) -> None:
    committed(root, 20)
    (root / "iter_0000020/notes.txt").write_text("a good one")
    assert newest(root) == 20


def test_what_cannot_be_known_is_an_error_and_not_an_older_commit(root: Path) -> None:
    """An older commit would be chosen, and hours of work lost, for a hiccup of the file system."""
    committed(root, 20, 40)
    record = root / "iter_0000040/COMMITTED.json"
    record.unlink()
    record.symlink_to(record.name)  # reading it is an error: a loop of links
    with pytest.raises(CheckpointError, match="nobody can say whether iter_0000040 is complete"):
        newest_commit(root)
    record.unlink()
    content = {"format": 2}
    digest = xxhash.xxh3_64_hexdigest(b'{"format":2}')
    record.write_text(json.dumps({"commit": content, "xxh3": digest}))
    with pytest.raises(CheckpointError, match="has format 2; this version reads format 1"):
        newest_commit(root)
    # Neither removes anything.
    Commits(root, 1).sweep()
    assert names(root) == ["iter_0000020", "iter_0000040"]


def test_nothing_is_left_of_a_commit_whose_rest_cannot_be_written(root: Path) -> None:
    commits = committed(root, 20)
    saved = save(commits.begin(40), 40)

    def fail(directory: Path) -> None:
        raise CheckpointError("the sampler has no state")

    with pytest.raises(CheckpointError, match="the sampler has no state"):
        commits.finish(40, saved, fail, {})
    assert names(root) == ["iter_0000020"]
    commit(commits, 40)
    assert newest(root) == 40


def test_a_full_disk_says_what_a_commit_takes(root: Path) -> None:
    commits = committed(root, 20)
    saved = save(commits.begin(40), 40)
    (root / "iter_0000030.0a1b2c3d.replaced").mkdir()

    def fill(directory: Path) -> None:
        with open("/dev/full", "wb") as stream:
            stream.write(b"the state of the sampler")

    with pytest.raises(CheckpointError) as refused:
        commits.finish(40, saved, fill, {})
    message = str(refused.value)
    assert "iteration 40 cannot be committed: no room is left" in message
    assert f"it takes {saved.size_bytes} B and a few MB more" in message
    assert "iter_0000030.0a1b2c3d.replaced for instance" in message
    assert isinstance(refused.value.__cause__, OSError)
    assert refused.value.__cause__.errno == errno.ENOSPC
    assert newest(root) == 20


def test_a_manifest_that_is_not_the_trainers_is_never_committed(root: Path) -> None:
    commits = Commits(root, 2)
    saved = save(commits.begin(20), 20)
    flip(saved.directory / "manifest.json")
    with pytest.raises(CheckpointError, match=f"the trainers wrote {saved.manifest_xxh3}"):
        commits.finish(20, saved, write_rest, {})
    assert names(root) == []


def test_weights_of_another_size_than_written_are_never_committed(root: Path) -> None:
    commits = Commits(root, 2)
    saved = save(commits.begin(20), 20)
    os.truncate(saved.directory / "__0_0.distcp", 5)
    with pytest.raises(CheckpointError, match="has 5 bytes; 26 were written"):
        commits.finish(20, saved, write_rest, {})
    assert names(root) == []


def test_a_save_that_another_host_publishes_is_waited_for(root: Path) -> None:
    commits = Commits(root, 2)
    directory = commits.begin(20)
    saved = save(directory, 20)
    hidden = root / "hidden"
    os.rename(directory, hidden)
    threading.Timer(0.7, os.rename, (hidden, directory)).start()
    assert commits.finish(20, saved, write_rest, {}).iteration == 20


def test_a_save_that_never_appears_is_an_error(root: Path) -> None:
    commits = Commits(root, 2, visible_s=0.1)
    directory = commits.begin(20)
    with pytest.raises(CheckpointError, match=r"ckpt\.save must be on a file system that all hosts share"):
        commits.finish(20, Saved(directory, 0, "", 0.1), write_rest, {})


def test_what_is_in_the_way_is_renamed_and_not_lost(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    commits = committed(root, 20)
    (root / "iter_0000040").mkdir()
    (root / "iter_0000040/results.csv").write_text("1,2")
    commit(commits, 40)
    assert newest(root) == 40
    (aside,) = root.glob("iter_0000040.*.replaced")
    assert (aside / "results.csv").read_text() == "1,2"
    assert "was in the way of a commit" in caplog.text


def test_a_valid_commit_is_never_written_over(root: Path) -> None:
    commits = committed(root, 20)
    before = (root / "iter_0000020/COMMITTED.json").read_bytes()
    with pytest.raises(CheckpointError, match="iter_0000020: is a valid commit already"):
        commits.begin(20)
    assert (root / "iter_0000020/COMMITTED.json").read_bytes() == before


def test_a_discarded_commit_leaves_nothing(root: Path) -> None:
    commits = committed(root, 20)
    directory = commits.begin(40)
    (root / f".{directory.name}.0a1b2c3d.saving").mkdir()
    (root / f".{directory.name}.0a1b2c3d.saving/__0_0.distcp").touch()
    commits.discard(40)
    assert names(root) == ["iter_0000020"]
    saved = save(commits.begin(40), 40)
    commits.discard(40)
    assert not saved.directory.exists()
    commits.discard(40)
    assert names(root) == ["iter_0000020"]


def test_an_attempt_that_another_has_followed_commits_nothing_more(root: Path) -> None:
    """A node that Slurm has given up may still run, and reach the file system."""
    old = committed(root, 20)
    saved = save(old.begin(40), 40)
    new = Commits(root, 2)
    new.sweep()
    assert not saved.directory.exists()
    commit(new, 40)
    with pytest.raises(CheckpointError, match="commits here since"):
        old.finish(40, saved, write_rest, {})
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} on .* commits here since"):
        old.sweep()
    assert newest(root) == 40
    commit(new, 41)


def test_followed_between_save_and_publication_nothing_is_published(root: Path) -> None:
    old = committed(root, 20)
    saved = save(old.begin(40), 40)

    def overtaken(directory: Path) -> None:
        Commits(root, 2)._owner.require()

    with pytest.raises(CheckpointError, match="commits here since"):
        old.finish(40, saved, overtaken, {})
    assert names(root) == ["iter_0000020"]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/checkpoints: nothing can be committed there"):
        Commits(tmp_path / "file/checkpoints", 2).begin(20)


def test_a_commit_has_files_in_directories_too(root: Path) -> None:
    commits = Commits(root, 2)

    def write(directory: Path) -> None:
        (directory / "rewards/cache").mkdir(parents=True)
        (directory / "rewards/cache/a.bin").write_bytes(b"abc")

    saved = save(commits.begin(20), 20)
    made = commits.finish(20, saved, write, {})
    assert made.files["rewards/cache/a.bin"].size == 3
    flip(root / "iter_0000020/rewards/cache/a.bin")
    with pytest.raises(CheckpointError, match=r"rewards/cache/a.bin is not what was committed"):
        judge(root / "iter_0000020")
