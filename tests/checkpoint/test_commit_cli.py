"""python -m r1hpc.checkpoint commits: what it prints, what it removes, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import xxhash

from r1hpc.checkpoint.__main__ import main
from r1hpc.checkpoint.commit import Commits
from tests.checkpoint.saves import Saved, commit, committed, write_rest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def with_weights(root: Path, forms: Path, *iterations: int) -> Commits:
    """Commits of a real torch_dist checkpoint, as convert writes it: the trainers' has the same manifest."""
    commits = Commits(root, 9)
    for iteration in iterations:
        directory = commits.begin(iteration)
        shutil.copytree(forms / "torch_dist/release", directory)
        manifest = (directory / "manifest.json").read_bytes()
        commits.finish(iteration, Saved(directory, 0, xxhash.xxh3_64_hexdigest(manifest), 0.1), write_rest, {})
    return commits


def test_list_says_where_a_run_goes_on(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed(root, 20, 40, 60)
    (root / "iter_0000060/__0_0.distcp").unlink()
    assert main(["commits", "list", str(root)]) == 0
    lines = lines_of(capsys)
    assert [line.split()[0] for line in lines] == ["iter_0000060", "iter_0000040", "iter_0000020"]
    assert "not valid" in lines[0]
    assert "__0_0.distcp is missing" in lines[0]
    assert [line.endswith("<- a run goes on from here") for line in lines] == [False, True, False]
    assert main(["commits", "list", str(root), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert [one["valid"] for one in table] == [False, True, True]
    assert table[1]["record"] == {"run_id": "r1", "weight_version": 41}


def test_list_of_no_commits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root.mkdir()
    assert main(["commits", "list", str(root)]) == 0
    assert lines_of(capsys) == [f"{root}: holds no valid commit"]
    assert main(["commits", "list", str(root / "nowhere")]) == 64
    assert "is no directory" in capsys.readouterr().err


def test_verify_reads_every_chunk(root: Path, forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_weights(root, forms, 20, 40)
    assert main(["commits", "verify", str(root), "--workers", "1"]) == 0
    lines = lines_of(capsys)
    assert lines.count("  everything that was checked is right") == 2
    assert any(line.startswith("  checked: hashes: ") for line in lines)
    data = max((root / "iter_0000040").glob("*.distcp"), key=lambda file: file.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert main(["commits", "verify", str(root), "--workers", "1"]) == 1
    problems = [line for line in lines_of(capsys) if line.startswith("  problem: ")]
    assert len(problems) == 1
    assert str(data) in problems[0]
    assert main(["commits", "verify", str(root / "iter_0000020"), "--workers", "1"]) == 0


def test_verify_of_half_a_commit_says_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed(root, 20)
    (root / "iter_0000020/COMMITTED.json").unlink()
    assert main(["commits", "verify", str(root)]) == 1
    assert any("was never committed" in line for line in lines_of(capsys))
    assert main(["commits", "verify", str(root.parent)]) == 64


def test_prune_keeps_the_newest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commits = committed(root, 10, 20, 30)
    size = sum(file.stat().st_size for file in (root / "iter_0000010").iterdir())
    assert main(["commits", "prune", str(root), "--dry-run"]) == 0
    assert lines_of(capsys) == [
        f"would remove {root / 'iter_0000010'}, {size} B: valid, but older than those that are kept",
        f"would remove {size} B in all",
    ]
    assert len(list(root.glob("iter_*"))) == 3
    assert main(["commits", "prune", str(root), "--keep", "1"]) == 0
    assert sorted(os.listdir(root)) == [".owner.json", "iter_0000030"]
    # A run that goes on meanwhile is not disturbed: pruning takes nothing over.
    commit(commits, 40)
    with pytest.raises(SystemExit):
        main(["commits", "prune", str(root), "--keep", "0"])
