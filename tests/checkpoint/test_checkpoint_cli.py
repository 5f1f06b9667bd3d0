"""python -m r1hpc.checkpoint: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from r1hpc.checkpoint.__main__ import main
from r1hpc.checkpoint.fold import fold, template
from tests.checkpoint.stored import edit_metadata, stored_tensor, write_torch_dist

FC1 = "decoder.layers.1-2.mlp.experts.experts.linear_fc1.weight"


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_inspect_shows_equal_tensors_of_several_layers_on_one_line(
    forms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(forms / "torch_dist")]) == 0
    lines = lines_of(capsys)
    assert lines[0] == f"{forms / 'torch_dist/release'}: torch_dist"
    assert lines[1].startswith(f"source: {forms / 'bf16'} (identity ")
    rows = {line.split()[0]: line.split()[1:] for line in lines[3:-2]}
    # 4 experts of 2 * 160 x 192 in bf16, gate and up apart; the head in 2 pieces.
    assert rows[FC1] == ["[4,", "320,", "192]", "bfloat16", "8", "492", "kB"]
    assert rows["output_layer.weight"] == ["[264,", "192]", "bfloat16", "2", "101", "kB"]
    assert rows["decoder.layers.1-2.mlp.router.expert_bias"] == ["[4]", "float32", "1", "16", "B"]
    alias = "decoder.layers.0-2.self_attention.linear_q_up_proj.layer_norm_weight"
    assert rows[alias][-2:] == ["=", "q_layernorm.weight"]
    order = list(rows)
    assert order[1] == "embedding.word_embeddings.weight"
    assert order.index("output_layer.weight") < order.index("mtp.layers.0.enorm.weight")


def test_totals_count_every_weight_once(forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {}
    for form in ("torch_dist", "bf16", "fp8"):
        assert main(["inspect", str(forms / form), "--json"]) == 0
        counts[form] = json.loads(capsys.readouterr().out)
    # Embedding and head of the prediction layer are copies, which torch_dist does not have: 2 x 264 x 192.
    assert counts["bf16"]["parameters"] - counts["torch_dist"]["parameters"] == 101_376
    assert counts["fp8"]["parameters"] == counts["bf16"]["parameters"]
    biases = 3 * 4
    assert counts["torch_dist"]["bytes"] == 2 * counts["torch_dist"]["parameters"] + 2 * biases
    assert counts["bf16"]["bytes"] == 2 * counts["bf16"]["parameters"] + 2 * biases
    tensor = counts["torch_dist"]["tensors"]["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"]
    assert tensor["shape"] == [4, 320, 192]
    assert [chunk[0] for chunk in tensor["chunks"]][:2] == ["[0:1, 0:160, 0:192]", "[0:1, 160:320, 0:192]"]


def test_inspect_shows_keys_and_tensors_of_any_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A key that another begins with, names the same bytes; keys with braces; tensors without a chunk."""
    tensor = torch.zeros(2, 3)
    write_torch_dist(tmp_path / "c", {key: (tensor, [[2], [3]]) for key in ("a.b", "a.b.c", "odd.{0}.{x}", "e", "f")})

    def edit(metadata: Metadata) -> None:
        data, zero = metadata.storage_data, torch.Size((0, 0))
        data[MetadataIndex("a.b.c", zero)] = data[MetadataIndex("a.b", zero)]
        for key in ("e", "f"):
            stored_tensor(metadata, key).chunks.clear()
            del data[MetadataIndex(key, zero)]

    edit_metadata(tmp_path / "c", edit)
    assert main(["inspect", str(tmp_path / "c")]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in lines_of(capsys)[3:-2]}
    assert rows["a.b.c"][-2:] == ["=", "a.b"]
    assert rows["odd.{0}.{x}"] == ["[2,", "3]", "float32", "1", "24", "B"]
    assert "=" not in rows["e"] + rows["f"]


def test_inspect_finds_keys_by_a_word_or_a_pattern(forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(forms / "bf16"), "--key", "experts.0.up", "--all"]) == 0
    keys = [line.split()[0] for line in lines_of(capsys)[4:-2]]
    assert keys == [f"model.layers.{layer}.mlp.experts.0.up_proj.weight" for layer in (1, 2, 3)]
    assert main(["inspect", str(forms / "torch_dist"), "--key", "output_*", "--chunks"]) == 0
    lines = lines_of(capsys)
    assert sum(line.startswith("    [") for line in lines) == 2
    assert "    [132:264, 0:192]  __" in "\n".join(lines)
    assert lines[-1].startswith("1 tensor, 50,688 parameters")


def test_verify_ends_with_0_1_or_64(forms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bf16 = Path(shutil.copytree(forms / "bf16", tmp_path / "bf16"))
    assert main(["verify", str(bf16), "--hashes", "--workers", "1"]) == 0
    assert lines_of(capsys)[-1] == "everything that was checked is right"
    os.truncate(bf16 / "model-00002-of-00003.safetensors", 5000)
    assert main(["verify", str(bf16), "--structure"]) == 1
    lines = lines_of(capsys)
    assert lines[-1] == "1 problem"
    assert "model-00002-of-00003.safetensors: has 5000 bytes" in lines[-2]
    assert main(["verify", str(tmp_path)]) == 64
    assert "holds no checkpoint" in capsys.readouterr().err
    assert main(["verify", str(bf16 / "nowhere")]) == 64
    for wrong in (["verify"], ["verify", "x", "--sample", "0"], ["verify", "x", "--hashes", "--structure"], ["burn"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 64


def test_verify_of_a_sample_says_so(forms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(forms / "torch_dist"), "--sample", "50", "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert "values: a sample of 50 of 99 tensors compared with" in captured.out
    assert "hashes" not in captured.out
    assert captured.err.startswith("values: ")
    assert captured.err.rstrip().endswith("B/s")


def test_export_says_what_it_took_from_elsewhere(
    forms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    arguments = ["export", str(forms / "torch_dist"), out, "--like", str(forms / "bf16"), "--workers", "1"]
    assert main(arguments) == 0
    assert "99 tensors" in capsys.readouterr().out
    assert main(arguments) == 64
    assert "already holds a checkpoint" in capsys.readouterr().err


def test_a_pipe_that_closes_early_is_no_error(forms: Path) -> None:
    command = f"{sys.executable} -m r1hpc.checkpoint inspect {forms / 'fp8'} --all | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [f"{forms / 'fp8'}: Hugging Face safetensors", "0"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("numbers", "folded"),
    [
        ([(0, 0), (0, 1), (1, 0), (1, 1)], [("0-1", "0-1")]),
        ([(3,), (4,), (5,), (7,)], [("3-5,7",)]),
        # Not a product of ranges: each line stands for exactly its own.
        ([(0, 0), (0, 1), (1, 0)], [("0", "0-1"), ("1", "0")]),
        ([()], [()]),
    ],
)
def test_ranges_stand_for_exactly_their_numbers(numbers: list[tuple[int, ...]], folded: list[tuple[str, ...]]) -> None:
    assert list(fold(numbers)) == folded


def test_numbers_are_those_between_dots() -> None:
    assert template("decoder.layers.3.mlp.linear_fc1.weight") == ("decoder.layers.{}.mlp.linear_fc1.weight", (3,))
    assert template("a._extra_state/shard_5_256") == ("a._extra_state/shard_{}_{}", (5, 256))
