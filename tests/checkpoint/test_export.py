"""torch_dist back to Hugging Face: the same bits, whoever wrote it and however it was cut."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from r1hpc.checkpoint.export import run_export
from r1hpc.checkpoint.export_plan import plan_export
from r1hpc.checkpoint.findings import Scope
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.names import by_key
from r1hpc.checkpoint.verify import verify
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.model.parallel import Layout
from tests.checkpoint.megatron.run import Model, save
from tests.checkpoint.stored import Cuts, write_torch_dist


def quiet(line: str) -> None:
    """Progress is not what these tests are about."""


def export(path: Path, like: Path, target: Path, fp8: bool = False) -> Path:
    run_export(plan_export(path, like, target, fp8=fp8), 1, quiet)
    return target


def tensors_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a Hugging Face checkpoint, as the safetensors library reads it by the index."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found: dict[str, Tensor] = {}
    for file in sorted(set(weight_map.values())):
        with safe_open(directory / file, "pt") as stream:
            assert stream.metadata() == {"format": "pt"}
            assert set(stream.keys()) == {name for name, place in weight_map.items() if place == file}
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (no mapping)
    assert set(found) == set(weight_map)
    return found


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(
        one[name].dtype == tensor.dtype and torch.equal(one[name].view(torch.uint8), tensor.view(torch.uint8))
        for name, tensor in other.items()
    )


def test_what_was_converted_comes_back_byte_for_byte(forms: Path, tmp_path: Path) -> None:
    out = export(forms / "torch_dist", forms / "bf16", tmp_path / "out")
    files = sorted(path.name for path in (forms / "bf16").iterdir() if path.name != "manifest.json")
    assert len([name for name in files if name.endswith(".safetensors")]) == 3
    for name in files:
        assert (out / name).read_bytes() == (forms / "bf16" / name).read_bytes(), name
    assert sorted(path.name for path in out.iterdir()) == [*files[:2], "manifest.json", *files[2:]]


def test_fp8_comes_back_as_it_was_before_cast_and_conversion(forms: Path, tmp_path: Path) -> None:
    """The released weights were bf16 when they were quantized, so the largest of a block survives the round trip."""
    out = export(forms / "torch_dist", forms / "fp8", tmp_path / "out", fp8=True)
    original = tensors_of(forms / "fp8")
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in original.values()) == 68
    assert same_bits(tensors_of(out), original)
    assert json.loads((out / "config.json").read_text()) == json.loads((forms / "fp8/config.json").read_text())
    total = sum(tensor.nbytes for tensor in original.values())
    assert json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == total


def test_fp8_can_be_laid_out_like_a_cast(forms: Path, tmp_path: Path) -> None:
    out = export(forms / "torch_dist", forms / "bf16", tmp_path / "out", fp8=True)
    config = json.loads((out / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    assert same_bits(tensors_of(out), tensors_of(forms / "fp8"))


def test_verify_accepts_an_export_and_finds_a_bit_that_flipped_in_it(forms: Path, tmp_path: Path) -> None:
    out = export(forms / "torch_dist", forms / "fp8", tmp_path / "out")
    findings = verify(out, scope=Scope(), workers=1, say=quiet)
    assert (findings.problems, findings.unchecked) == ([], [])
    assert f"compared with {forms / 'torch_dist/release'}, bit for bit" in findings.checked[-1]
    entry = open_checkpoint(out).entries["lm_head.weight"]
    with open(entry.file, "r+b") as stream:
        stream.seek(entry.begin)
        byte = stream.read(1)[0]
        stream.seek(entry.begin)
        stream.write(bytes([byte ^ 1]))
    (problem,) = verify(out, scope=Scope(hashes=False), workers=1, say=quiet).problems
    assert "output_layer.weight" in problem
    assert "lm_head.weight" in problem


def test_transformers_loads_an_export(forms: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = export(forms / "torch_dist", forms / "fp8", tmp_path / "out")
    loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    original = tensors_of(forms / "bf16")
    state = model.state_dict()
    assert torch.equal(state["lm_head.weight"], original["lm_head.weight"])
    assert torch.equal(
        state["model.layers.2.mlp.experts.down_proj"][3], original["model.layers.2.mlp.experts.3.down_proj.weight"]
    )
    tokens = torch.tensor([[1, 5, 9]])
    assert bool(model(tokens).logits.isfinite().all())
    assert AutoTokenizer.from_pretrained(out).chat_template


def megatron_tensors(source: Path, mtp: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """The Megatron tensors of a bf16 checkpoint, put together whole and without any code of the converter."""
    weights = tensors_of(source)
    made = {}
    for key, parts in by_key(open_checkpoint(source).names).items():
        if key.startswith("mtp.") and not mtp:
            continue
        # Offsets order the parts as concatenation needs them: expert by expert, gate before up.
        ordered = [weights[part.hf] for part in sorted(parts, key=lambda part: part.offset)]
        whole = torch.cat(ordered).view(parts[0].global_shape)
        made[key] = whole if parts[0].float32 else whole.to(dtype)
    return made


def halves(shape: torch.Size) -> Cuts:
    """A grid of two parts on each axis, of unequal size where it is odd."""
    return [[size // 2, size] if size > 1 else [size] for size in shape]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_checkpoint_of_training_is_exported_whatever_its_grid(
    forms: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Other chunks than convert's, an optimizer, a padded vocabulary, no prediction layer, weights in either dtype."""
    stored = megatron_tensors(forms / "bf16", mtp=False, dtype=dtype)
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        stored[key] = torch.cat([stored[key], torch.full((56, 192), 7.0, dtype=dtype)])
    stored["optimizer.state.exp_avg.output_layer.weight"] = torch.zeros(8, 8)
    write_torch_dist(tmp_path / "iter_0000020", {key: (value, halves(value.shape)) for key, value in stored.items()})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    plan = plan_export(tmp_path, forms / "bf16", tmp_path / "out", fp8=False)
    lacking = {name.hf for name in plan.from_like}
    # A prediction layer's embedding and head are the model's own, which the checkpoint has.
    assert len(lacking) == 9 + 5 + 12 + 4
    assert all(name.startswith("model.layers.3.") for name in lacking)
    run_export(plan, 1, quiet)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(forms / "bf16"))


def test_what_megatron_writes_with_the_names_of_transformer_engine_is_exported(forms: Path, tmp_path: Path) -> None:
    source = open_checkpoint(forms / "bf16")
    weights = tensors_of(source.directory)
    places = {(name.key, name.offset): name.hf for name in source.names if name.copy_of is None}
    spelled = {name.key: name.te_key for name in source.names if name.te_key}
    model = Model(source.config, source.shape, Layout(), tmp_path, torch.bfloat16, mtp=True)
    save(model, tmp_path / "c", lambda box: weights[places[box.key, tuple(box.global_offset)]], spelled)
    out = export(tmp_path / "c", forms / "bf16", tmp_path / "out")
    assert same_bits(tensors_of(out), weights)


def test_what_training_does_not_have_is_taken_as_it_is_in_fp8(forms: Path, tmp_path: Path) -> None:
    """Codes and scales of the prediction layer are copied: here they are such as quantizing again would not give."""
    like = Path(shutil.copytree(forms / "fp8", tmp_path / "like"))
    name = "model.layers.3.self_attn.o_proj.weight_scale_inv"
    entry = open_checkpoint(like).entries[name]
    scales = torch.tensor([0.3, 0.7] * (entry.size_bytes // 8))
    with open(entry.file, "r+b") as stream:
        stream.seek(entry.begin)
        stream.write(scales.numpy().tobytes())
    stored = megatron_tensors(forms / "bf16", mtp=False, dtype=torch.bfloat16)
    write_torch_dist(tmp_path / "c", {key: (value, halves(value.shape)) for key, value in stored.items()})
    out = export(tmp_path / "c", like, tmp_path / "out", fp8=True)
    assert torch.equal(tensors_of(out)[name].flatten(), scales)
    assert same_bits(tensors_of(out), tensors_of(like))


def test_an_interrupted_export_goes_on_where_it_was(forms: Path, tmp_path: Path) -> None:
    """What a kill between two files leaves: one file with its record, one without, no index."""
    whole = export(forms / "torch_dist", forms / "bf16", tmp_path / "whole")
    target = tmp_path / "out"
    plan = plan_export(forms / "torch_dist", forms / "bf16", target, fp8=False)
    done, half = plan.files[0], plan.files[1]
    plan.parts.mkdir(parents=True)
    shutil.copy(whole / done.name, target)
    manifest: dict[str, Any] = json.loads((whole / "manifest.json").read_text())
    plan.part(done).write_text(json.dumps(manifest["files"][done.name]))
    (target / half.name).write_bytes(b"of another export")
    before = (target / done.name).stat().st_mtime_ns
    outcome = run_export(plan, 1, quiet)
    assert outcome.written_bytes == sum(file.size_bytes for file in plan.files if file != done)
    assert (target / done.name).stat().st_mtime_ns == before
    assert sorted(path.name for path in target.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in whole.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def test_files_of_another_export_are_not_taken_for_ones_own(forms: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    other = plan_export(forms / "torch_dist", forms / "bf16", target, fp8=True)
    mine = plan_export(forms / "torch_dist", forms / "bf16", target, fp8=False)
    assert other.identity != mine.identity
    other.parts.mkdir(parents=True)
    (target / other.files[0].name).write_bytes(b"12345")
    other.part(other.files[0]).write_text(json.dumps({"size": 5, "tensors": {}}))
    run_export(mine, 1, quiet)
    assert same_bits(tensors_of(target), tensors_of(forms / "bf16"))
    assert not (target / ".export").exists()


def test_a_directory_that_holds_a_checkpoint_is_refused(forms: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (forms / "bf16").iterdir()}
    with pytest.raises(
        CheckpointError, match=r"already holds a checkpoint, or a part of one \(model.safetensors.index.json\)"
    ):
        plan_export(forms / "torch_dist", forms / "fp8", forms / "bf16", fp8=False)
    assert {path.name: path.stat().st_mtime_ns for path in (forms / "bf16").iterdir()} == before


def test_a_checkpoint_of_another_model_is_refused_with_every_reason(forms: Path, tmp_path: Path) -> None:
    stored = megatron_tensors(forms / "bf16", mtp=True, dtype=torch.bfloat16)
    del stored["decoder.final_layernorm.weight"]
    stored["output_layer.weight"] = stored["output_layer.weight"][:200]
    stored["decoder.layers.1.input_layernorm.weight"] = torch.zeros(192, dtype=torch.float16)
    write_torch_dist(tmp_path / "c", {key: (value, [[size] for size in value.shape]) for key, value in stored.items()})
    with pytest.raises(CheckpointProblems) as error:
        plan_export(tmp_path / "c", forms / "bf16", tmp_path / "out", fp8=False)
    told = "\n".join(error.value.problems)
    assert "has no decoder.final_layernorm.weight, which model.norm.weight is made from" in told
    assert "output_layer.weight has shape [200, 192]" in told
    assert "decoder.layers.1.input_layernorm.weight is torch.float16" in told
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_not_finite_is_not_quantized(forms: Path, tmp_path: Path) -> None:
    stored = megatron_tensors(forms / "bf16", mtp=True, dtype=torch.bfloat16)
    stored["decoder.layers.0.mlp.linear_fc2.weight"][130, 3] = float("inf")
    write_torch_dist(tmp_path / "c", {key: (value, halves(value.shape)) for key, value in stored.items()})
    with pytest.raises(CheckpointError, match=r"model.layers.0.mlp.down_proj.weight.*\[130, 3\]"):
        export(tmp_path / "c", forms / "bf16", tmp_path / "out", fp8=True)
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def before(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert found
    return found


def test_what_an_export_reads_is_never_written_over(forms: Path, tmp_path: Path) -> None:
    """A model of one file has no index, by which a taken directory would be known."""
    like, torch_dist = tmp_path / "like", Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    like.mkdir()
    save_file(tensors_of(forms / "bf16"), like / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(forms / "bf16/config.json", like)
    (tmp_path / "link").symlink_to(like)
    was = before(tmp_path)
    refusals = {
        like: "is .*, which the export reads",
        tmp_path / "link": "is .*, which the export reads",
        like / "below": "lies in .*, which the export reads",
        torch_dist / "release": "is .*, which the export reads",
        torch_dist: "holds .*, which the export reads",
        tmp_path: "holds .*, which the export reads",
    }
    for target, message in refusals.items():
        with pytest.raises(CheckpointError, match=message):
            plan_export(torch_dist, like, target, fp8=False)
    assert before(tmp_path) == was


@pytest.mark.parametrize(
    "name",
    [".metadata", "latest_checkpointed_iteration.txt", "model.safetensors", "model-1.safetensors", "manifest.json"],
)
def test_a_directory_with_a_part_of_a_checkpoint_is_refused(forms: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / name).write_bytes(b"of another")
    with pytest.raises(CheckpointError, match=rf"already holds a checkpoint, or a part of one \({name}\)"):
        plan_export(forms / "torch_dist", forms / "bf16", target, fp8=False)


def test_a_killed_export_may_go_on_where_its_files_lie(forms: Path, tmp_path: Path) -> None:
    plan = plan_export(forms / "torch_dist", forms / "bf16", tmp_path / "out", fp8=False)
    plan.parts.mkdir(parents=True)
    (tmp_path / "out" / plan.files[0].name).write_bytes(b"half")
    export(forms / "torch_dist", forms / "bf16", tmp_path / "out")
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(forms / "bf16"))


@pytest.mark.parametrize(
    "theirs", [None, {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}]
)
def test_the_quantization_of_an_export_is_that_of_its_scales(
    forms: Path, tmp_path: Path, theirs: dict[str, object] | None
) -> None:
    like = Path(shutil.copytree(forms / "fp8" if theirs else forms / "bf16", tmp_path / "like"))
    config = json.loads((like / "config.json").read_text())
    (like / "config.json").write_text(json.dumps({**config, "quantization_config": theirs}))
    said: list[str] = []
    run_export(plan_export(forms / "torch_dist", like, tmp_path / "out", fp8=True), 1, said.append)
    written = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert written == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    assert any(f"that of {like} is of other scales" in line for line in said) == (theirs is not None)


@pytest.mark.parametrize("changed", ["a file", "the manifest"])
def test_another_training_of_the_same_shape_is_another_export(forms: Path, tmp_path: Path, changed: str) -> None:
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    first = plan_export(root, forms / "bf16", tmp_path / "out", fp8=False)
    assert plan_export(root, forms / "bf16", tmp_path / "out", fp8=False).identity == first.identity
    if changed == "a file":
        os.utime(next((root / "release").glob("*.distcp")), (1_700_000_000, 1_700_000_000))
    else:
        (root / "release/manifest.json").write_text("{}")
    assert plan_export(root, forms / "bf16", tmp_path / "out", fp8=False).identity != first.identity


def test_the_source_on_record_is_an_absolute_path(forms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(forms)
    export(Path("torch_dist"), Path("bf16"), tmp_path / "out")
    record = json.loads((tmp_path / "out/manifest.json").read_text())["source"]
    assert record["path"] == str(forms.resolve() / "torch_dist/release")
