"""Records beside a checkpoint that are broken or somebody else's: a problem or an error that names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r1hpc.checkpoint.__main__ import main
from r1hpc.checkpoint.findings import Scope
from r1hpc.checkpoint.kind import kind_of
from r1hpc.checkpoint.recheck import recheck_file
from r1hpc.checkpoint.records import read_object, read_record
from r1hpc.checkpoint.verify import verify
from r1hpc.errors import CheckpointError
from tests.checkpoint.runs import edit_json, quiet

TRACKER = "latest_checkpointed_iteration.txt"


def problems(path: Path) -> list[str]:
    return verify(path, scope=Scope(hashes=True, values=False), workers=1, say=quiet).problems


@pytest.fixture
def bf16(forms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms / "bf16", tmp_path / "bf16"))


@pytest.fixture
def release(forms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist")) / "release"


@pytest.mark.parametrize("manifest", [{"name": "x"}, {"source": "hub"}, {"format": 2, "files": {}, "source": {}}])
def test_a_manifest_of_somebody_else_is_none_of_ours(bf16: Path, manifest: dict[str, Any]) -> None:
    (bf16 / "manifest.json").write_text(json.dumps(manifest))
    findings = verify(bf16, scope=Scope(values=False), workers=1, say=quiet)
    assert findings.problems == []
    assert any(text.startswith("hashes: manifest.json is not there, or not of ours") for text in findings.unchecked)
    assert main(["inspect", str(bf16)]) == 0


@pytest.mark.parametrize(
    "damage",
    [
        {"source": "hub"},
        {"source": {"path": "x"}},
        {"files": []},
        {"files": {"model-00001-of-00003.safetensors": {"size": 5}}},
        {"files": {"model-00001-of-00003.safetensors": {"size": "5", "tensors": {}}}},
    ],
)
def test_a_manifest_of_a_cast_that_is_damaged_is_told(
    bf16: Path, damage: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(bf16 / "manifest.json", lambda values: values.update(damage))
    told = f"{bf16}/manifest.json: is no manifest that the cast or the export wrote; it is damaged"
    assert problems(bf16) == [told]
    assert main(["inspect", str(bf16)]) == 64
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("metadata", [None, 5, {}])
def test_an_index_without_a_total_size_is_told(bf16: Path, metadata: object) -> None:
    edit_json(bf16 / "model.safetensors.index.json", lambda values: values.update(metadata=metadata))
    (problem,) = problems(bf16)
    assert "index.json: total_size is None; the tensors have" in problem


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("manifest.json", "{}", "is no manifest that convert wrote (it lacks 'files')"),
        ("manifest.json", '{"files": {"a": {}}, "chunks": {}}', "is no manifest that convert wrote (it lacks 'size')"),
        ("manifest.json", '{"files": {"a": {"size": "1", "xxh3": null}}}', "('1' is no int)"),
        ("manifest.json", '{"files": {}, "chunks": {"a": [[[0], ["1"], "f", 0, 1, "x"]]}}', "('1' is no int)"),
        ("manifest.json", "{", "is not JSON"),
        ("source.json", "{}", "is no record of a source that convert wrote (it lacks 'path')"),
        ("source.json", '{"path": 5, "identity": "x"}', "(5 is no str)"),
        ("source.json", '{"path": "x", "identity": "x", "config": null, "tensors": {}}', "(None is no dict)"),
        ("source.json", '{"path": "x", "identity": "x", "config": {}, "tensors": {}}', "hidden_size"),
        ("source.json", "[]", "holds a list, not a record"),
    ],
)
def test_a_record_of_a_conversion_that_is_damaged_is_told(release: Path, name: str, content: str, told: str) -> None:
    (release / name).write_text(content)
    report = "\n".join(problems(release))
    assert report.startswith(f"{release / name}: ")
    assert told in report
    assert "run the task again" not in report
    if name == "source.json" and "config" not in content:
        assert main(["inspect", str(release)]) == 64


def test_a_tracker_that_is_no_text_is_told(release: Path) -> None:
    (release.parent / TRACKER).write_bytes(b"\xff\xferelease")
    (problem,) = problems(release)
    assert problem.startswith(f"{release.parent / TRACKER}: says '")


def test_within_a_release_its_tracker_is_found(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (release.parent / TRACKER).unlink()
    monkeypatch.chdir(release)
    (problem,) = problems(Path())
    assert problem.startswith(f"{release.parent / TRACKER}: cannot be read (No such file or directory); it must say")


def test_a_record_that_cannot_be_read_is_an_error_that_names_it(release: Path, bf16: Path) -> None:
    for file in (release / "source.json", release / "manifest.json", bf16 / "manifest.json"):
        file.unlink()
        file.mkdir()
        assert problems(file.parent) == [f"{file}: cannot be read (Is a directory)"]
        file.rmdir()


def test_advice_about_a_broken_record_depends_on_who_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "part.json"
    assert (read_object(file), read_record(file)) == (None, {})
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"is not JSON .*; remove it and run the task again$"):
        read_record(file)
    with pytest.raises(CheckpointError, match=r"is not JSON .*\)$"):
        read_object(file)


def test_a_path_that_cannot_be_looked_into_holds_no_checkpoint(tmp_path: Path) -> None:
    """A name that is too long fails as a directory that is closed does, for root too."""
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: .*it cannot be looked into \(File name too long"):
        kind_of(tmp_path / ("x" * 300))


def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path: Path) -> None:
    assert recheck_file(tmp_path, [], quiet) == [f"{tmp_path}: cannot be read (Is a directory)"]  # type: ignore[arg-type]
