"""What keeps a cast from being made: each named by file and tensor, and nothing published."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.submit.parameters import HOME
from tests.checkpoint.runs import (
    INDEX,
    Edit,
    cast,
    contents,
    edit_json,
    edit_shard,
    file_of,
    forked,
    leaves_with,
    workers_die_at_rename,
)

UP = "model.layers.1.mlp.experts.2.up_proj.weight"  # [160, 192] in fp8
EMBEDDING = "model.embed_tokens.weight"  # [264, 192] in bf16


@pytest.fixture
def source(forms: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))


def nothing_is_published(target: Path) -> bool:
    return not (target / INDEX).exists() and not list(target.rglob("*.tmp"))


def no_scale(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{UP}_scale_inv"]


def other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP][:128].contiguous()


def other_scale_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{UP}_scale_inv"] = torch.ones(1, 2)


def other_dtype(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP].to(torch.float16)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (no_scale, f"has no {UP}_scale_inv, which {INDEX} places there"),
        (other_shape, f"{UP} has shape [128, 192]; config.json asks for [160, 192]"),
        (other_scale_shape, f"{UP}_scale_inv has shape [1, 2]; [160, 192] in blocks of 128 x 128 has [2, 2]"),
        (other_dtype, f"{UP} is F16; it must be BF16 or F8_E4M3"),
    ],
)
def test_a_source_that_is_not_what_it_must_be(source: Path, tmp_path: Path, edit: Edit, said: str) -> None:
    file = file_of(source, f"{UP}_scale_inv" if edit in (no_scale, other_scale_shape) else UP)
    edit_shard(file, edit)
    with pytest.raises(CheckpointProblems, match=re.escape(f"{file}: {said}")):
        cast(source, tmp_path / "bf16")
    assert not (tmp_path / "bf16").exists()


def test_a_scale_that_the_index_lacks_too(source: Path, tmp_path: Path) -> None:
    scale = f"{UP}_scale_inv"
    edit_shard(file_of(source, scale), no_scale)
    edit_json(source / INDEX, lambda index: index["weight_map"].pop(scale))
    said = f"{file_of(source, UP)}: {UP} is fp8 and its _scale_inv [2, 2] is missing"
    with pytest.raises(CheckpointProblems, match=re.escape(said)):
        cast(source, tmp_path / "bf16")


def test_a_shard_that_is_cut_short_or_missing(source: Path, tmp_path: Path) -> None:
    first, second, _ = sorted(source.glob("*.safetensors"))
    os.truncate(first, first.stat().st_size - 1)
    second.unlink()
    with pytest.raises(CheckpointProblems) as caught:
        cast(source, tmp_path / "bf16")
    cut, missing = caught.value.problems
    assert re.match(rf"{first}: has \d+ bytes, its header asks for \d+: it is cut short within model\.", cut)
    assert missing.startswith(f"{second}: cannot be read (No such file or directory)")
    assert not (tmp_path / "bf16").exists()


def test_a_code_that_is_no_number(source: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP].view(torch.uint8)[130, 7] = 0x7F

    edit_shard(file_of(source, UP), spoil)
    with pytest.raises(CheckpointError, match=rf"{file_of(source, UP)}: {UP}: NaN at \[130, 7\]"):
        cast(source, tmp_path / "bf16", workers=2)
    assert nothing_is_published(tmp_path / "bf16")


def test_a_bf16_value_that_is_not_finite(source: Path, tmp_path: Path) -> None:
    edit_shard(file_of(source, EMBEDDING), lambda tensors: tensors[EMBEDDING][200, 3].fill_(float("inf")))
    with pytest.raises(CheckpointError, match=rf"{EMBEDDING} is inf at \[200, 3\]; it must be finite"):
        cast(source, tmp_path / "bf16")
    assert nothing_is_published(tmp_path / "bf16")


def test_a_file_that_cannot_be_written_and_the_run_after_it(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "bf16"

    def run() -> None:
        # As on a full disk: the write of the byte after these fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        said = r"model-0000\d-of-00003.safetensors: cannot be written at model\.\S+ \(File too large\)"
        with pytest.raises(CheckpointError, match=said):
            cast(source, target)
        assert nothing_is_published(target)

    with forked(run) as child:
        assert leaves_with(child) == 0
    assert cast(source, target).published
    cast(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system of 1 MB, which takes root")
def test_too_little_room_is_said_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "small"
    target.mkdir()
    settings = [f"ckpt.hf_checkpoint={source}", f"ckpt.bf16_checkpoint={target / 'bf16'}"]
    command = [sys.executable, "-m", "jobs.cast", "tests/pipeline.yaml", "--set", settings[0], "--set", settings[1]]
    # In a mount namespace of its own: gone with the process.
    mount = 'mount -t tmpfs -o size=1m none "$0" && "$@"; rc=$?; find "$0" -type f; exit $rc'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, str(target), *command],
        cwd=HOME,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 1, done.stderr
    assert re.search(r"cast: .*: the cast takes \d\S* MB more, \S+ [kM]B are free; make room", done.stderr), done.stderr
    assert done.stdout == ""


def test_a_target_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"file/.bf16.cast/\w+/complete: cannot be made \(Not a dir.*set ckpt.bf16"
    ):
        cast(source, tmp_path / "file" / "bf16")


def test_a_worker_that_is_killed_is_named_with_its_file(source: Path, tmp_path: Path) -> None:
    def run() -> None:
        workers_die_at_rename()
        said = r"the worker of model-0000\d-of-00003.safetensors was ended \(SIGKILL\)"
        with pytest.raises(CheckpointError, match=said):
            cast(source, tmp_path / "bf16")

    with forked(run) as child:
        assert leaves_with(child) == 0
    assert cast(source, tmp_path / "bf16").published
    assert nothing_is_published(tmp_path) and not (tmp_path / ".bf16.cast").exists()
