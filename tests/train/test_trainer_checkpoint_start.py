"""Where a run begins, for every state that the directory of `load` can be in."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.checkpoint.commit import Commits
from r1hpc.config.training import CkptConfig
from r1hpc.errors import CheckpointError
from r1hpc.train.checkpoint.start import Found, Start, where_to_start
from tests.checkpoint.saves import committed


@pytest.fixture
def save(tmp_path: Path) -> Path:
    """The run's own directory of checkpoints; not made yet."""
    return tmp_path / "run/checkpoints"


def ckpt(load: Path | None = None, ref_load: str | None = "/models/ref", fresh: bool = False) -> CkptConfig:
    return CkptConfig(
        hf_checkpoint="/models/hf", ref_load=ref_load, load=None if load is None else str(load), fresh=fresh
    )


def checkpoint(directory: Path, name: str, word: str) -> Path:
    (directory / name).mkdir(parents=True)
    (directory / name / ".metadata").touch()
    (directory / "latest_checkpointed_iteration.txt").write_text(word + "\n")
    return directory / name


def refusal(config: CkptConfig, save: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        where_to_start(config, save)
    return str(refused.value)


def begins(start: Start) -> tuple[Path, int, bool]:
    return start.directory, start.rollout, start.resumes


REFERENCE = (Path("/models/ref"), 0, False)


def test_the_first_run_has_no_directory_yet(save: Path) -> None:
    assert begins(where_to_start(ckpt(), save)) == REFERENCE


def test_an_empty_directory_is_a_first_run(save: Path) -> None:
    save.mkdir(parents=True)
    assert begins(where_to_start(ckpt(), save)) == REFERENCE


def test_a_load_that_is_not_there_is_a_first_run(save: Path, tmp_path: Path) -> None:
    assert begins(where_to_start(ckpt(tmp_path / "elsewhere"), save)) == REFERENCE


def test_what_a_killed_first_save_left_is_a_first_run(save: Path) -> None:
    (save / ".iter_0000000.0a1b2c3d.saving").mkdir(parents=True)
    assert begins(where_to_start(ckpt(), save)) == REFERENCE


def test_an_iteration_is_resumed_at_the_next_rollout(save: Path) -> None:
    saved = checkpoint(save, "iter_0000040", "40")
    assert begins(where_to_start(ckpt(), save)) == (saved, 41, True)


def test_the_first_iteration_is_resumed_at_rollout_1(save: Path) -> None:
    saved = checkpoint(save, "iter_0000000", "0")
    assert begins(where_to_start(ckpt(), save)) == (saved, 1, True)


def test_a_release_starts_at_rollout_0_with_a_new_optimizer(save: Path, tmp_path: Path) -> None:
    released = checkpoint(tmp_path / "other", "release", "release")
    assert begins(where_to_start(ckpt(tmp_path / "other"), save)) == (released, 0, False)


def test_a_run_that_was_begun_fresh_resumes_its_own_checkpoints(save: Path) -> None:
    saved = checkpoint(save, "iter_0000003", "3")
    assert begins(where_to_start(ckpt(fresh=True), save)) == (saved, 4, True)


def test_load_is_where_the_first_attempt_starts(save: Path, tmp_path: Path) -> None:
    saved = checkpoint(tmp_path / "other", "iter_0000100", "100")
    assert begins(where_to_start(ckpt(tmp_path / "other"), save)) == (saved, 101, True)


def test_a_requeued_run_goes_on_from_its_own_commits_whatever_load_says(save: Path, tmp_path: Path) -> None:
    checkpoint(tmp_path / "other", "iter_0000100", "100")
    committed(save, 3)
    for load in (tmp_path / "other", tmp_path / "nowhere", save):
        assert begins(where_to_start(ckpt(load), save)) == (save / "iter_0000003", 4, True)


def test_the_commits_of_another_run_are_a_start(save: Path, tmp_path: Path) -> None:
    committed(tmp_path / "other", 20, 40)
    assert begins(where_to_start(ckpt(tmp_path / "other"), save)) == (tmp_path / "other/iter_0000040", 41, True)


def test_a_commit_counts_more_than_a_tracker(save: Path) -> None:
    checkpoint(save, "release", "release")
    committed(save, 3)
    assert begins(where_to_start(ckpt(), save)) == (save / "iter_0000003", 4, True)


def test_a_damaged_commit_is_passed_over(save: Path) -> None:
    committed(save, 3, 6)
    (save / "iter_0000006/COMMITTED.json").unlink()
    assert begins(where_to_start(ckpt(), save)) == (save / "iter_0000003", 4, True)


def test_a_run_whose_commits_are_all_damaged_does_not_start_over(save: Path, tmp_path: Path) -> None:
    committed(save, 3)
    (save / "iter_0000003/__0_0.distcp").unlink()
    committed(tmp_path / "other", 100)
    for load in (None, tmp_path / "other"):
        message = refusal(ckpt(load), save)
        assert f"{save}: holds files (iter_0000003) but no checkpoint" in message
        assert f"commits list {save} says what is wrong" in message
    assert begins(where_to_start(ckpt(fresh=True), save)) == REFERENCE


def test_what_a_killed_first_commit_left_is_a_first_run(save: Path) -> None:
    commits = Commits(save, 2)
    directory = commits.begin(0)
    (save / f".{directory.name}.0a1b2c3d.saving").mkdir()
    directory.mkdir()
    assert len(list(save.iterdir())) == 3
    assert begins(where_to_start(ckpt(), save)) == REFERENCE


def test_files_without_a_checkpoint_are_refused_by_name(save: Path) -> None:
    save.mkdir(parents=True)
    for name in ("iter_0000040", "notes.txt"):
        (save / name).touch()
    message = refusal(ckpt(), save)
    assert f"{save}: holds files (iter_0000040, notes.txt) but no checkpoint" in message
    assert "ckpt.fresh: true" in message


def test_files_without_a_checkpoint_are_passed_over_when_asked(save: Path) -> None:
    save.mkdir(parents=True)
    (save / "notes.txt").touch()
    start = where_to_start(ckpt(fresh=True), save)
    assert begins(start) == REFERENCE
    assert "ckpt.fresh" in start.reason


def test_a_hugging_face_checkpoint_is_called_one(save: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/model.safetensors").touch()
    assert "is a Hugging Face checkpoint" in refusal(ckpt(tmp_path / "hf"), save)


def test_a_checkpoint_itself_is_told_from_the_directory_of_checkpoints(save: Path, tmp_path: Path) -> None:
    saved = checkpoint(tmp_path / "other", "iter_0000007", "7")
    message = refusal(ckpt(saved), save)
    assert "is a checkpoint itself" in message
    assert message.endswith(f"{tmp_path / 'other'}?")


def test_a_tracker_that_names_nothing_is_refused_even_when_fresh(save: Path) -> None:
    save.mkdir(parents=True)
    (save / "latest_checkpointed_iteration.txt").write_text("40")
    assert "names 40, but" in refusal(ckpt(fresh=True), save)


def test_a_tracker_of_another_kind_is_refused(save: Path) -> None:
    save.mkdir(parents=True)
    (save / "latest_checkpointed_iteration.txt").write_text("newest")
    assert "says 'newest'" in refusal(ckpt(), save)


def test_a_file_is_no_directory(save: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "ckpt.load must be a directory of checkpoints; it is no directory" in refusal(ckpt(tmp_path / "file"), save)


def test_without_a_reference_there_is_nothing_to_start_from(save: Path) -> None:
    assert "nothing to start from; set ref_load" in refusal(ckpt(ref_load=None), save)


def test_commits_can_be_found_in_another_way(save: Path) -> None:
    (save / "iter_0000009").mkdir(parents=True)
    start = where_to_start(ckpt(), save, lambda directory: Found(directory / "iter_0000009", 9))
    assert begins(start) == (save / "iter_0000009", 10, True)
