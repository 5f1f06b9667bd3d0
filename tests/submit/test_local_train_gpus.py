"""What GPUs the train job sees as a task of submitit's local executor, which hides them all; the real executor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from submitit.local.local import LocalExecutor

from jobs.local_train import VISIBLE_GPUS, LocalTrain


class Seen(LocalTrain):
    """The job, as far as the first thing that it does."""

    def __call__(self) -> str | None:  # type: ignore[override]
        self._see_gpus()
        return os.environ.get(VISIBLE_GPUS)


@pytest.mark.parametrize("visible", [None, "", "0", "2,3", "GPU-8f2e"])
def test_the_train_job_sees_what_its_submitter_saw(
    visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is None:
        monkeypatch.delenv(VISIBLE_GPUS, raising=False)
    else:
        monkeypatch.setenv(VISIBLE_GPUS, visible)
    executor = LocalExecutor(folder=tmp_path)
    executor.update_parameters(timeout_min=1)
    assert executor.submit(Seen("run", "end")).result() == visible
