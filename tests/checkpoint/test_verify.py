"""Everything that Megatron loads without a word, and verify does not let pass."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from r1hpc.checkpoint.findings import Findings, Scope
from r1hpc.checkpoint.fp8_format import QUANTIZATION
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.inspect import contents
from r1hpc.checkpoint.values import sample
from r1hpc.checkpoint.verify import verify
from r1hpc.errors import CheckpointError
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.checkpoint.conftest import ODD_SIZES
from tests.checkpoint.stored import edit_metadata, flip_bit, located, stored_tensor

FC1 = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
FC2 = "decoder.layers.1.mlp.experts.experts.linear_fc2.weight"
BIAS = "decoder.layers.2.mlp.router.expert_bias"
EMBEDDING = "embedding.word_embeddings.weight"
EXTRA_STATE = "decoder.layers.1.self_attention.linear_proj._extra_state/shard_0_1"
STRUCTURE = Scope(hashes=False, values=False)
HASHES = Scope(values=False)
VALUES = Scope(hashes=False)
ALL = Scope()


def check(path: Path, scope: Scope, source: Path | None = None) -> Findings:
    return verify(path, source=source, scope=scope, workers=1, say=lambda line: None)


@pytest.fixture
def root(forms: Path, tmp_path: Path) -> Path:
    """A torch_dist checkpoint to spoil."""
    return Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))


@pytest.fixture
def bf16(forms: Path, tmp_path: Path) -> Path:
    """A cast to spoil."""
    return Path(shutil.copytree(forms / "bf16", tmp_path / "bf16"))


def middle(info: _StorageInfo) -> int:
    """A byte of the payload: the chunk is much larger than what torch.save puts around it."""
    return info.offset + info.length // 2


def flip(release: Path) -> str:
    info = located(release, FC1, (2, 160, 0))
    flip_bit(release / info.relative_path, middle(info))
    return info.relative_path


def drop_chunk(release: Path) -> None:
    def edit(metadata: Metadata) -> None:
        del stored_tensor(metadata, FC1).chunks[5]
        del metadata.storage_data[MetadataIndex(FC1, torch.Size((2, 160, 0)))]

    edit_metadata(release, edit)


def double_chunk(release: Path) -> None:
    """Expert 1's gate in place of expert 2's: as many elements as there should be."""

    def edit(metadata: Metadata) -> None:
        chunks = stored_tensor(metadata, FC1).chunks
        gone = chunks.pop(4)
        assert tuple(gone.offsets) == (2, 0, 0)
        del metadata.storage_data[MetadataIndex(FC1, gone.offsets)]
        chunks.append(type(gone)(torch.Size((1, 80, 0)), gone.sizes))
        metadata.storage_data[MetadataIndex(FC1, torch.Size((1, 80, 0)))] = metadata.storage_data[
            MetadataIndex(FC1, torch.Size((1, 0, 0)))
        ]

    edit_metadata(release, edit)


def cut_file(release: Path) -> None:
    file = release / located(release, FC1, (2, 160, 0)).relative_path
    os.truncate(file, file.stat().st_size - 1)


def half_precision_bias(release: Path) -> None:
    edit_metadata(release, lambda metadata: _set_dtype(metadata, BIAS, torch.bfloat16))


def full_precision_weight(release: Path) -> None:
    edit_metadata(release, lambda metadata: _set_dtype(metadata, FC2, torch.float32))


def _set_dtype(metadata: Metadata, key: str, dtype: torch.dtype) -> None:
    stored_tensor(metadata, key).properties.dtype = dtype


def larger_vocabulary(release: Path) -> None:
    """The checkpoint is of 264 rows; its source is now said to have 512."""
    edit_source(release, lambda source: source["config"].update(vocab_size=512))


def more_layers(release: Path) -> None:
    edit_source(release, lambda source: source["config"].update(num_hidden_layers=4))


def edit_source(release: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    source = json.loads((release / "source.json").read_text())
    edit(source)
    (release / "source.json").write_text(json.dumps(source))


def surplus_key(release: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata["decoder.layers.9.stray"] = metadata.state_dict_metadata.pop(BIAS)
        index = MetadataIndex(BIAS, torch.Size((0,)))
        metadata.storage_data[MetadataIndex("decoder.layers.9.stray", torch.Size((0,)))] = metadata.storage_data.pop(
            index
        )

    edit_metadata(release, edit)


def no_extra_state(release: Path) -> None:
    def edit(metadata: Metadata) -> None:
        assert isinstance(metadata.state_dict_metadata.pop(EXTRA_STATE), BytesStorageMetadata)
        del metadata.storage_data[MetadataIndex(EXTRA_STATE)]

    edit_metadata(release, edit)


def no_second_name(release: Path) -> None:
    key = "decoder.layers.0.mlp.linear_fc1.layer_norm_weight"

    def edit(metadata: Metadata) -> None:
        del metadata.state_dict_metadata[key]
        del metadata.storage_data[MetadataIndex(key, torch.Size((0,)))]

    edit_metadata(release, edit)


def point_elsewhere(release: Path) -> None:
    """Expert 0's down_proj and expert 1's are read from the same bytes."""

    def edit(metadata: Metadata) -> None:
        one, other = (MetadataIndex(FC2, torch.Size((expert, 0, 0))) for expert in (0, 1))
        metadata.storage_data[other] = metadata.storage_data[one]

    edit_metadata(release, edit)


def moved_in_the_manifest(release: Path) -> None:
    """`.metadata` names a chunk that the manifest does not: there it is of another expert."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["chunks"][FC2] = [row for row in manifest["chunks"][FC2] if row[0] != [1, 0, 0]]

    _edit_json(release / "manifest.json", edit)


def no_tensors(release: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata.clear()
        metadata.storage_data.clear()

    edit_metadata(release, edit)
    (release / "source.json").unlink()
    (release / "manifest.json").unlink()


SPOILED: list[tuple[Callable[[Path], object], Scope, list[str]]] = [
    (flip, HASHES, [FC1, "[2, 160, 0]", ".distcp", "xxh3"]),
    (flip, VALUES, [FC1, "[2:3, 160:320, 0:192]", "experts.2.up_proj.weight", "differs", "in 1 of 30,720 elements"]),
    (drop_chunk, STRUCTURE, [f"{FC1} [4, 320, 192]: 30,720 of 245,760 elements are missing", "[2:3, 160:320, 0:192]"]),
    (double_chunk, STRUCTURE, [FC1, "the parts [1:2, 0:160, 0:192] and [1:2, 80:240, 0:192] overlap"]),
    (cut_file, STRUCTURE, [".distcp: has", "the manifest says"]),
    (lambda release: (release / "__0_0.distcp").unlink(), STRUCTURE, ["__0_0.distcp: is missing"]),
    (half_precision_bias, STRUCTURE, [f"{BIAS}: is bfloat16; it must be float32"]),
    (full_precision_weight, STRUCTURE, [f"{FC2}: is float32; it must be bfloat16"]),
    (larger_vocabulary, STRUCTURE, [f"{EMBEDDING}: has 264 rows of vocabulary, config.json says 512"]),
    (more_layers, STRUCTURE, ["has no decoder.layers.3.input_layernorm.weight, which model.layers.3."]),
    (surplus_key, STRUCTURE, ["decoder.layers.9.stray belongs to no weight", f"has no {BIAS}"]),
    (no_extra_state, STRUCTURE, [f"has no {EXTRA_STATE}"]),
    (no_second_name, STRUCTURE, ["has no decoder.layers.0.mlp.linear_fc1.layer_norm_weight, the name of"]),
    (point_elsewhere, STRUCTURE, [FC2, "at [1, 0, 0]", ".metadata does not say so"]),
    (point_elsewhere, STRUCTURE, [f"{FC2} [0:1, 0:192, 0:160] and {FC2} [1:2, 0:192, 0:160] are stored in the same"]),
    (lambda release: (release / "metadata.json").unlink(), STRUCTURE, ["metadata.json: cannot be read"]),
    (
        lambda release: (release.parent / "latest_checkpointed_iteration.txt").write_text("20"),
        STRUCTURE,
        ["latest_checkpointed_iteration.txt: says '20'; it must say release"],
    ),
    (lambda release: flip_bit(release / "common.pt", 700), HASHES, ["common.pt: has xxh3"]),
    (moved_in_the_manifest, STRUCTURE, [f".metadata says that {FC2} at [1, 0, 0] of [1, 192, 160] begins at byte"]),
    (no_tensors, STRUCTURE, ["release: holds no tensor"]),
]


@pytest.mark.parametrize(("spoil", "scope", "told"), SPOILED)
def test_what_is_wrong_is_found_and_named(
    root: Path, spoil: Callable[[Path], object], scope: Scope, told: list[str]
) -> None:
    spoil(root / "release")
    # The release itself: a tracker that leads elsewhere would not lead here.
    findings = check(root / "release", scope)
    assert not findings.good
    report = "\n".join(findings.problems)
    for part in told:
        assert part in report


def test_a_good_checkpoint_passes_every_check(root: Path, forms: Path) -> None:
    findings = check(root, ALL)
    assert findings.problems == []
    assert findings.unchecked == []
    report = "\n".join(findings.checked)
    assert f"compared with {forms / 'bf16'}, bit for bit" in report
    # 3 of the model; 9 in each of 4 layers; a dense MLP of 3; 5 and 4 experts of 3 in 3 layers; 6 of prediction.
    assert "values: 99 tensors" in report


def test_experts_that_changed_places_are_found_though_every_hash_is_right(root: Path) -> None:
    release = root / "release"

    def swap(metadata: Metadata) -> None:
        one, other = (MetadataIndex(FC2, torch.Size((expert, 0, 0))) for expert in (0, 3))
        data = metadata.storage_data
        data[one], data[other] = data[other], data[one]

    edit_metadata(release, swap)
    manifest = json.loads((release / "manifest.json").read_text())
    first, last = (next(row for row in manifest["chunks"][FC2] if row[0] == [e, 0, 0]) for e in (0, 3))
    first[2:], last[2:] = last[2:], first[2:]
    del manifest["files"][".metadata"]
    (release / "manifest.json").write_text(json.dumps(manifest))
    assert check(root, HASHES).problems == []
    problems = check(root, VALUES).problems
    assert len(problems) == 2
    for expert, problem in zip((0, 3), sorted(problems, key=lambda text: "experts.3." in text), strict=True):
        assert f"{FC2} [{expert}:{expert + 1}, 0:192, 0:160] differs from" in problem
        assert f"model.layers.1.mlp.experts.{expert}.down_proj.weight" in problem


def test_a_zero_that_lost_its_sign_is_found(forms: Path, tmp_path: Path) -> None:
    """-0.0 equals 0.0 as a number; bit for bit it does not."""
    source = Path(shutil.copytree(forms / "bf16", tmp_path / "source"))
    file, begin = _entry_at(source, "model.layers.1.mlp.gate.weight")
    stored = file.read_bytes()[begin : begin + 64]
    _write(file, begin, b"\x00\x80")
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    info = located(root / "release", "decoder.layers.1.mlp.router.weight", (0, 0))
    converted = root / "release" / info.relative_path
    _write(converted, converted.read_bytes().index(stored, info.offset), b"\x00\x00")
    (problem,) = check(root, VALUES, source).problems
    assert "decoder.layers.1.mlp.router.weight" in problem
    assert "in 1 of 768 elements, first at [0, 0]: 0.0 where -0.0 is expected" in problem


def _entry_at(directory: Path, name: str) -> tuple[Path, int]:
    entry = open_checkpoint(directory).entries[name]
    return entry.file, entry.begin


def _write(file: Path, at: int, data: bytes) -> None:
    with open(file, "r+b") as stream:
        stream.seek(at)
        stream.write(data)


def test_a_source_that_changed_since_is_said(forms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "torch_dist"))
    other = tmp_path / "other"
    write_tiny_model(other, overrides=ODD_SIZES, seed=1)
    edit_source(root / "release", lambda source: source.update(path=str(other)))
    findings = check(root, VALUES)
    assert any(f"whether {other} is what was read then" in text for text in findings.unchecked)
    assert len(findings.problems) > 20
    assert "the source has changed since the conversion" in findings.problems[0]
    lines = findings.lines()
    assert lines[-2] == f"and {len(findings.problems) - 20} more"
    assert lines[-1] == f"{len(findings.problems)} problems"


def test_what_cannot_be_checked_is_said(root: Path) -> None:
    release = root / "release"
    edit_source(release, lambda source: source.update(path="/nowhere/model"))
    (release / "manifest.json").unlink()
    findings = check(root, ALL)
    assert findings.good
    assert "values: their source /nowhere/model is not there; give --source HF_DIR" in findings.unchecked
    assert "hashes: manifest.json is not there; only convert writes one" in findings.unchecked
    (release / "source.json").unlink()
    unchecked = "\n".join(check(root, ALL).unchecked)
    assert "which tensors there must be: source.json is not there" in unchecked
    with pytest.raises(CheckpointError, match="/nowhere/model: is no directory; --source names"):
        check(root, ALL, Path("/nowhere/model"))


def test_the_fp8_model_may_be_the_source_of_what_was_converted_from_its_cast(root: Path, forms: Path) -> None:
    findings = check(root, VALUES, forms / "fp8")
    assert findings.problems == []
    assert f"compared with {forms / 'fp8'}, bit for bit" in "\n".join(findings.checked)


def test_a_sample_has_every_kind_of_weight(forms: Path) -> None:
    names = open_checkpoint(forms / "bf16").names
    kinds = {"".join("#" if c.isdigit() else c for c in name.hf) for name in names}
    small, large = sample(names, 1), sample(names, 60)
    for chosen in (small, large):
        assert {"".join("#" if c.isdigit() else c for c in name.hf) for name in chosen} == kinds
    assert (len(small), len(large)) == (len(kinds), 60)
    assert sample(names, 60) == large
    assert len(set(sample(names, 10_000))) == len(names)


def test_a_good_cast_passes_and_so_does_its_source(forms: Path) -> None:
    findings = check(forms / "bf16", ALL)
    assert (findings.problems, findings.unchecked) == ([], [])
    assert f"compared with {forms / 'fp8'}" in findings.checked[-1]
    findings = check(forms / "fp8", ALL)
    assert findings.problems == []
    assert len(findings.unchecked) == 2  # neither hashes nor a source are on record


def test_a_flipped_bit_of_a_cast_is_found_by_hash_and_by_value(bf16: Path, forms: Path) -> None:
    name = "model.layers.2.mlp.experts.3.gate_proj.weight"
    file, begin = _entry_at(bf16, name)
    flip_bit(file, begin + 1000)
    (problem,) = check(bf16, HASHES).problems
    assert str(file) in problem
    assert name in problem
    (problem,) = check(bf16, VALUES).problems
    # 1000 bytes are 500 elements: row 2, column 116 of rows of 192.
    assert f"{file}: {name} differs from {_entry_at(forms / 'fp8', name)[0]}: {name} in 1 of 30,720" in problem
    assert "first at [2, 116]: " in problem


def _edit_json(file: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "edit", "told"),
    [
        ("model.safetensors.index.json", lambda v: v["metadata"].update(total_size=5), "total_size is 5; the tensors"),
        ("config.json", lambda v: v.update(quantization_config=QUANTIZATION), "names a quantization_config"),
        ("manifest.json", lambda v: v["files"].popitem(), "is not in the manifest"),
        ("manifest.json", lambda v: v["files"].update(gone={"size": 1, "tensors": {}}), "gone: is in the manifest"),
    ],
)
def test_a_cast_whose_records_disagree_is_found(
    bf16: Path, file: str, edit: Callable[[dict[str, Any]], None], told: str
) -> None:
    _edit_json(bf16 / file, edit)
    assert told in "\n".join(check(bf16, STRUCTURE).problems)


def test_a_checkpoint_of_another_model_is_not_compared_value_by_value(root: Path, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "other", overrides={**ODD_SIZES, "n_routed_experts": 8})
    assert check(root, VALUES, tmp_path / "other").problems == [
        f"{root / 'release'}: is of another model than {tmp_path / 'other'}"
    ]


def test_a_problem_of_the_vocabulary_is_told_once_though_two_weights_share_the_tensor(root: Path) -> None:
    larger_vocabulary(root / "release")
    problems = [problem for problem in check(root, STRUCTURE).problems if "rows of vocabulary" in problem]
    assert len(problems) == len(set(problems)) == 2  # embedding and head


@pytest.mark.parametrize("key", ["optimizer.state.exp_avg", "chained_0.optimizer.state.exp_avg", "rng_state/x"])
def test_what_training_keeps_beside_the_weights_is_no_weight(root: Path, forms: Path, key: str) -> None:
    """As Megatron's ChainedOptimizer writes it too; inspect counts it as no parameter."""
    release = root / "release"
    (release / "source.json").unlink()
    parameters = contents(release).num_parameters

    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata[key] = metadata.state_dict_metadata[BIAS]
        index, offset = MetadataIndex(BIAS, torch.Size((0,))), torch.Size((0,))
        metadata.storage_data[MetadataIndex(key, offset)] = metadata.storage_data[index]

    edit_metadata(release, edit)
    (release / "manifest.json").unlink()
    assert check(root, STRUCTURE, forms / "bf16").problems == []
    rows = {row.key: row for row in contents(release).rows}
    assert not rows[key].counts
    # The bytes are those of the bias, which counts as long as it stands first.
    assert contents(release).num_parameters == parameters
