"""Directories that saves fill: removed whoever else removes them."""

from __future__ import annotations

from pathlib import Path
from threading import Barrier, Thread

from r1hpc.train.checkpoint.staging_directory import make_staging, remove_staging

TIMES = 200


def test_two_ranks_may_remove_what_a_failed_save_left(tmp_path: Path) -> None:
    errors: list[OSError] = []

    def remove(staging: Path, together: Barrier) -> None:
        together.wait()
        try:
            remove_staging(staging)
        except OSError as error:
            errors.append(error)

    for number in range(TIMES):
        staging = make_staging(tmp_path / f"iter_{number:07d}")
        for rank in range(20):
            (staging / f"__{rank}_0.distcp").touch()
        together = Barrier(2)
        threads = [Thread(target=remove, args=(staging, together)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not staging.exists()
    assert errors == []


def test_what_a_killed_save_left_goes_with_the_next_of_any_iteration(tmp_path: Path) -> None:
    left = make_staging(tmp_path / "iter_0000001")
    (left / "__0_0.distcp").touch()
    (left / ".metadata").touch()
    staging = make_staging(tmp_path / "iter_0000002")
    assert list(tmp_path.iterdir()) == [staging]
    remove_staging(left)
    assert staging.is_dir()
