"""A checkpoint against what it was made from: in both directions, in every format, with the right one blamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from r1hpc.checkpoint.export import run_export
from r1hpc.checkpoint.export_plan import plan_export
from r1hpc.checkpoint.findings import Findings, Scope
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.verify import verify
from tests.checkpoint.runs import convert, edit_json, edit_shard, file_of, quiet
from tests.checkpoint.stored import flip_bit, located, write_torch_dist
from tests.checkpoint.test_export import halves, megatron_tensors

UP = "model.layers.2.mlp.experts.3.up_proj.weight"
FC1 = "decoder.layers.2.mlp.experts.experts.linear_fc1.weight"
VALUES = Scope(hashes=False)


def check(path: Path, source: Path | None = None, scope: Scope = VALUES) -> Findings:
    return verify(path, source=source, scope=scope, workers=1, say=quiet)


def export(path: Path, like: Path, target: Path, *, fp8: bool = False) -> Path:
    run_export(plan_export(path, like, target, fp8=fp8), 1, quiet)
    return target


@pytest.fixture
def trained(forms: Path, tmp_path: Path) -> Path:
    """A checkpoint of training: float32, no prediction layer, values that bf16 does not have."""
    stored = megatron_tensors(forms / "bf16", mtp=False, dtype=torch.float32)
    for key, value in stored.items():
        if value.dim() > 1:
            stored[key] = value * 1.0001
    write_torch_dist(tmp_path / "iter_0000020", {key: (value, halves(value.shape)) for key, value in stored.items()})
    return tmp_path / "iter_0000020"


@pytest.mark.parametrize("fp8", [False, True])
def test_an_export_of_float32_weights_is_compared_after_rounding(
    forms: Path, trained: Path, tmp_path: Path, fp8: bool
) -> None:
    findings = check(export(trained, forms / "fp8", tmp_path / "out", fp8=fp8))
    assert findings.problems == []
    # Of 99, those of the prediction layer: 9 of attention and norms, 5 and 12 of experts, 4 of its own.
    assert findings.unchecked == [f"values of 30 tensors against a source: {trained} does not hold them"]
    assert f"values: 69 tensors compared with {trained}, bit for bit" in findings.checked
    assert "values: 30 tensors read, for any that is not finite" in findings.checked


def test_places_are_claimed_only_for_tensors_that_are_there(forms: Path, trained: Path) -> None:
    findings = check(trained, forms / "bf16", Scope(hashes=False, values=False))
    assert "model: a place for each of 69 Hugging Face tensors of its config.json" in findings.checked
    assert "30 tensors of prediction layers: the checkpoint does not hold them" in findings.unchecked


def test_a_bit_that_flipped_in_an_export_is_blamed_on_the_export(forms: Path, tmp_path: Path) -> None:
    out = export(forms / "torch_dist", forms / "bf16", tmp_path / "out")
    entry = open_checkpoint(out).entries[UP]
    flip_bit(entry.file, entry.begin)
    (problem,) = check(out).problems
    # Expert 3's up_proj: rows 160 to 319 of [4, 320, 192].
    assert problem.startswith(f"{entry.file}: {UP} differs from {forms / 'torch_dist/release'}/__")
    assert f".distcp: {FC1} [3:4, 160:320, 0:192] in 1 of 30,720 elements, first at [0, 0]: " in problem
    held, expected = problem.rsplit("]: ", 1)[1].removesuffix(" is expected").split(" where ")
    with_bit = torch.tensor(float(held), dtype=torch.bfloat16).view(torch.int16)
    assert int(with_bit ^ torch.tensor(float(expected), dtype=torch.bfloat16).view(torch.int16)) == 1


@pytest.mark.parametrize("part", ["", "_scale_inv"])
@pytest.mark.parametrize("origin", ["torch_dist", "bf16", "fp8"])
def test_an_fp8_export_is_compared_bit_for_bit(forms: Path, tmp_path: Path, origin: str, part: str) -> None:
    out = export(forms / "torch_dist", forms / "bf16", tmp_path / "out", fp8=True)
    assert check(out, forms / origin).problems == []
    entry = open_checkpoint(out).entries[UP + part]
    flip_bit(entry.file, entry.begin)
    (problem,) = check(out, forms / origin).problems
    assert problem.startswith(f"{entry.file}: {UP} ")
    assert ("in 1 of 30,720 elements, first at [0, 0]: " in problem) or part
    assert ("first at the scale of block [0, 0]: " in problem) == bool(part)


def test_fp8_that_quantizing_would_not_give_again_is_right_by_its_cast(forms: Path, tmp_path: Path) -> None:
    """Twice the scale, half the codes: no block of it reaches 448, so quantizing its cast gives other codes."""
    fp8, bf16 = (Path(shutil.copytree(forms / form, tmp_path / form)) for form in ("fp8", "bf16"))
    codes, scales = torch.full((160, 192), 3.0).to(torch.float8_e4m3fn), torch.full((2, 2), 0.25)
    edit_shard(file_of(fp8, UP), lambda tensors: tensors.update({UP: codes, UP + "_scale_inv": scales}))
    edit_shard(file_of(bf16, UP), lambda tensors: tensors.update({UP: torch.full((160, 192), 0.75).bfloat16()}))
    assert check(fp8, bf16).problems == []
    edit_shard(file_of(bf16, UP), lambda tensors: tensors.update({UP: torch.full((160, 192), 0.5).bfloat16()}))
    (problem,) = check(fp8, bf16).problems
    assert f"{UP} is not what quantizing gives of" in problem or f"{UP} dequantized differs from" in problem


def test_what_hashes_found_is_told_although_the_source_cannot_be_read(forms: Path, tmp_path: Path) -> None:
    torch_dist = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    out = export(torch_dist, forms / "bf16", tmp_path / "out")
    entry = open_checkpoint(out).entries[UP]
    flip_bit(entry.file, entry.begin)
    (torch_dist / "release/.metadata").write_bytes(b"broken")
    problems = check(out, scope=Scope()).problems
    assert any(problem.startswith(f"{entry.file}: {UP} at [0, 0] has xxh3") for problem in problems)
    assert any(problem.startswith(f"source: {torch_dist}/release/.metadata: is no metadata") for problem in problems)
    shutil.rmtree(torch_dist / "release")
    problems = check(out, scope=Scope()).problems
    assert any(problem.startswith(f"{entry.file}: {UP} at [0, 0] has xxh3") for problem in problems)


def test_a_damaged_checkpoint_is_not_blamed_on_a_source_that_is_not_the_one_on_record(
    forms: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    info = located(root / "release", FC1, (3, 160, 0))
    flip_bit(root / "release" / info.relative_path, info.offset + info.length // 2)
    findings = check(root, forms / "fp8")
    (problem,) = findings.problems
    assert "in 1 of 30,720 elements" in problem
    assert "has changed" not in problem
    assert findings.unchecked == []


def test_a_scale_of_the_source_that_changed_is_blamed(forms: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))
    convert(source, tmp_path / "torch_dist")
    entry = open_checkpoint(source).entries[UP + "_scale_inv"]
    flip_bit(entry.file, entry.begin + 2)
    (problem,) = check(tmp_path / "torch_dist").problems
    assert f"; the source has changed since the conversion ({UP}_scale_inv has xxh3 " in problem


def test_a_source_whose_hash_on_record_is_another_is_told_though_its_values_are_right(
    forms: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    edit_json(root / "release/source.json", lambda values: values["tensors"].update({UP: "0123456789abcdef"}))
    (problem,) = check(root).problems
    assert f"{UP} of {file_of(forms / 'bf16', UP)}: the source has changed since the conversion" in problem
    assert "on record is 0123456789abcdef" in problem


def test_a_configuration_that_is_not_the_source_s_is_told(forms: Path, tmp_path: Path) -> None:
    bf16 = Path(shutil.copytree(forms / "bf16", tmp_path / "bf16"))
    was = json.loads((bf16 / "config.json").read_text())["routed_scaling_factor"]
    edit_json(bf16 / "config.json", lambda values: values.update(routed_scaling_factor=1.25))
    told = f"routed_scaling_factor is 1.25; in {forms / 'fp8'}/config.json it is {was}"
    assert check(bf16).problems == [f"{bf16}/config.json: {told}"]
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    edit_json(root / "release/source.json", lambda values: values["config"].pop("routed_scaling_factor"))
    told = f"routed_scaling_factor is not there; in {forms / 'bf16'}/config.json it is {was}"
    assert check(root).problems == [f"{root}/release/source.json: {told}"]


def test_a_quantization_that_the_weights_do_not_have_is_told_of_any_checkpoint(forms: Path, tmp_path: Path) -> None:
    fp8, bf16 = (Path(shutil.copytree(forms / form, tmp_path / form)) for form in ("fp8", "bf16"))
    quantization = json.loads((fp8 / "config.json").read_text())["quantization_config"]
    (bf16 / "manifest.json").unlink()
    edit_json(bf16 / "config.json", lambda values: values.update(quantization_config=quantization))
    structure = Scope(hashes=False, values=False)
    told = "names a quantization_config, the weights are bf16"
    assert check(bf16, scope=structure).problems == [f"{bf16}/config.json: {told}"]
    edit_json(fp8 / "config.json", lambda values: values.update(quantization_config=None))
    told = "names no quantization_config, the weights are fp8"
    assert check(fp8, scope=structure).problems == [f"{fp8}/config.json: {told}"]
    edit_json(bf16 / "config.json", lambda values: values.update(quantization_config=None))
    assert check(bf16, scope=structure).problems == []
