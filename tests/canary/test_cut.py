"""The cut of a checkpoint: the same bytes, a smaller model that everything of ours reads, whole or not there at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1hpc.canary.config import canary_config
from r1hpc.canary.cut import plan_cut, write_cut
from r1hpc.canary.layers import LayerCut, cut_layers
from r1hpc.canary.prepare import main, prepare
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.config import load_config
from r1hpc.config.dump import dump_config
from r1hpc.exit_codes import INVALID
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.rundir import RunDir
from tests.checkpoint.runs import quiet, stored

HOME = Path(__file__).parents[2]
CUT = LayerCut(num_layers=3, first=None, last=None, mtp_layers=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny R1 of five layers and one of prediction, in block fp8, in several files."""
    directory = tmp_path_factory.mktemp("source") / "fp8"
    write_tiny_model(directory, shards=3)
    return directory


def test_kept_tensors_have_the_bytes_of_the_source(source: Path, tmp_path: Path) -> None:
    write_cut(plan_cut(source, tmp_path / "cut", CUT), 1, quiet)
    before, after = stored(source), stored(tmp_path / "cut")
    assert {name.split(".")[2] for name in after if ".layers." in name} == {"0", "1", "2", "3"}
    for name, values in after.items():
        original = before[name.replace("model.layers.3.", "model.layers.5.")]
        assert values.dtype == original.dtype and torch.equal(values.view(torch.uint8), original.view(torch.uint8)), (
            name
        )
    # Everything of layers 0 to 2, of the prediction layer and of no layer.
    kept = [name for name in before if ".layers." not in name or name.split(".")[2] in "0125"]
    assert len(after) == len(kept) > 100
    assert any(values.dtype == torch.float8_e4m3fn for values in after.values())


def test_the_cut_is_a_checkpoint_with_a_smaller_configuration(source: Path, tmp_path: Path) -> None:
    write_cut(plan_cut(source, tmp_path / "cut", replace(CUT, mtp_layers=0)), 1, quiet)
    before, after = (json.loads((path / "config.json").read_text()) for path in (source, tmp_path / "cut"))
    assert after == before | {"num_hidden_layers": 3, "num_nextn_predict_layers": 0}
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (source / name).read_bytes()
    checkpoint = open_checkpoint(tmp_path / "cut")  # raises where a tensor is lacking, or is one too many
    assert checkpoint.has_fp8 and checkpoint.shape.num_layers == 3


def _run_directory(source: Path, base: Path) -> RunDir:
    """A run that submit has prepared, as far as the canary's preparation reads it."""
    overrides = [f"vars.WORK={base}", f"ckpt.hf_checkpoint={source}", "hosts.num_nodes=4"]
    run = RunDir(base / "runs" / "rehearsal")
    run.root.mkdir(parents=True)
    run.config.write_text(dump_config(load_config(HOME / "configs" / "rehearsal.yaml", overrides=overrides).config))
    run.run.write_text(json.dumps({"run_id": "rehearsal-1", "config_hash": "abc"}))
    return run


def test_a_killed_preparation_is_gone_on_with_and_a_complete_one_kept(source: Path, tmp_path: Path) -> None:
    run = _run_directory(source, tmp_path)
    command = [sys.executable, "-m", "r1hpc.canary.prepare", str(run.root)]
    first = subprocess.Popen(command, cwd=HOME, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not run.canary.model.exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    prepare(run, quiet)
    files = [*run.canary.root.rglob("*.safetensors"), *run.canary.root.rglob("*.distcp")]
    weights = {file: file.stat().st_mtime_ns for file in files}
    lines: list[str] = []
    prepare(run, lines.append)
    assert len(weights) > 4 and all(file.stat().st_mtime_ns == written for file, written in weights.items())
    assert lines[0].startswith("the canary has 3 of 5 layers: ")
    config = load_config(run.canary.run.config).config
    assert config == canary_config(
        load_config(run.config).config,
        cut_layers(load_config(run.config).config, open_checkpoint(source).shape),
        run.canary,
    )
    assert json.loads(run.canary.run.run.read_text())["run_id"] == "rehearsal-1"
    assert json.loads(run.canary.run.plan.read_text())["times"]["save_s"] >= 0


def test_another_model_takes_the_place_of_the_one_before(source: Path, tmp_path: Path) -> None:
    run = _run_directory(source, tmp_path)
    prepare(run, quiet)
    other = tmp_path / "other"
    write_tiny_model(other, seed=1)
    run.config.write_text(run.config.read_text().replace(str(source), str(other)))
    prepare(run, quiet)
    name = "model.layers.2.mlp.experts.0.down_proj.weight"
    before, after, found = (stored(path)[name].view(torch.uint8) for path in (source, other, run.canary.model))
    assert torch.equal(found, after) and not torch.equal(found, before)
    assert (run.canary.torch_dist / "release" / ".metadata").is_file()


def test_what_is_no_run_directory_is_said_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nosuch")]) == INVALID
    assert f"{tmp_path / 'nosuch'}: is no run directory: it has no config.yaml" in capsys.readouterr().err


def test_a_wrong_configuration_is_one_here_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("run: {nam: x}\n")
    assert main([str(tmp_path)]) == INVALID
    assert "did you mean name?" in capsys.readouterr().err
