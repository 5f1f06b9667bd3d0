"""Commits of another run in ckpt.save: refused, with both runs and the way out."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from r1hpc.checkpoint.commits.belonging import refuse_other_runs
from r1hpc.config import load_config
from r1hpc.errors import ConfigError
from r1hpc.rundir import RunDir
from r1hpc.wiring import Attempt, wired
from tests.checkpoint.saves import committed
from tests.run.rehearsed_loop import silent

PIPELINE = Path(__file__).parents[1] / "pipeline.yaml"


def refusal(root: Path, run_id: str | None) -> str:
    with pytest.raises(ConfigError) as refused:
        refuse_other_runs(root, run_id)
    return str(refused.value)


def test_a_run_goes_on_from_its_own_commits(tmp_path: Path) -> None:
    committed(tmp_path / "saved", 3, 6)  # by the run r1
    refuse_other_runs(tmp_path / "saved", "r1")
    refuse_other_runs(tmp_path / "nothing", "r1")


def test_another_runs_commits_are_refused_with_both_ids_and_the_way_out(tmp_path: Path) -> None:
    committed(tmp_path, 3)
    message = refusal(tmp_path, "second-0a1b2c")
    assert f"ckpt.save = {tmp_path}: iter_0000003 was committed by run r1, and this run is second-0a1b2c" in message
    for way_out in ("run.name", "ckpt.save=null", f"ckpt.load={tmp_path}"):
        assert way_out in message
    assert "this run has not begun yet" in refusal(tmp_path, None)


def test_an_older_commit_of_another_run_is_refused_too_for_it_would_be_removed(tmp_path: Path) -> None:
    committed(tmp_path, 3, 6)
    path = tmp_path / "iter_0000006/COMMITTED.json"
    path.write_text(path.read_text().replace('"run_id": "r1"', '"run_id": "second"'))
    assert "iter_0000003 was committed by run r1" in refusal(tmp_path, "second")


@pytest.mark.parametrize("text", ["", "{}", '{"commit": {"record": {}}}', '{"commit": []}'])
def test_what_names_no_run_is_left_to_those_who_load_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "iter_0000003").mkdir()
    (tmp_path / "iter_0000003/COMMITTED.json").write_text(text)
    refuse_other_runs(tmp_path, "second")


def test_an_attempt_leaves_before_it_touches_another_runs_directory(tmp_path: Path) -> None:
    saved, run = tmp_path / "saved", RunDir(tmp_path / "runs/second")
    committed(saved, 3)
    (saved / ".iter_0000004.0a1b2c3d.uncommitted").mkdir()  # the other run is about to commit
    before = {path: path.stat().st_mtime_ns for path in sorted(saved.rglob("*"))}
    run.root.mkdir(parents=True)
    run.run.write_text(json.dumps({"run_id": "second-0a1b2c", "config_hash": "abc"}))
    config = load_config(PIPELINE, overrides=[f"vars.WORK={tmp_path}", f"ckpt.save={saved}"]).config

    async def attempt() -> None:
        given = Attempt(run, run.attempt("7", 0), config, cast("Any", None), cast("Any", None), (), silent())
        async with wired(given):
            pytest.fail("it began")

    with pytest.raises(ConfigError, match="committed by run r1, and this run is second-0a1b2c"):
        asyncio.run(attempt())
    assert {path: path.stat().st_mtime_ns for path in sorted(saved.rglob("*"))} == before
    assert os.listdir(run.root) == ["run.json"]
