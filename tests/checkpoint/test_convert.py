"""The conversion: one result whatever the source's form, the order of the tasks, or the moment of a kill."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import xxhash
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from r1hpc.checkpoint.conversion import Conversion, make_slices, plan_conversion
from r1hpc.checkpoint.convert import run_convert_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.names import tensors
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.checkpoint.conftest import ODD_SIZES
from tests.checkpoint.runs import (
    at_once,
    cast,
    contents,
    conversion,
    convert,
    edit_shard,
    file_of,
    flip_bit,
    killed_at_rename,
    published,
    quiet,
    revise,
    stored,
)

TRACKER = "latest_checkpointed_iteration.txt"
SMALL = {"metadata.json", "common.pt", "manifest.json", "source.json", ".metadata", "__objects.distcp"}


@pytest.fixture(scope="module")
def whole(forms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one undisturbed task makes of the bf16 form."""
    root = tmp_path_factory.mktemp("whole") / "torch_dist"
    assert convert(forms / "bf16", root).published
    return contents(root)


def read_release(release: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a torch_dist checkpoint, put together from its chunks by the metadata alone."""
    metadata: Metadata = pickle.loads((release / ".metadata").read_bytes())
    found = {}
    for index, info in metadata.storage_data.items():
        described = metadata.state_dict_metadata[index.fqn]
        if not isinstance(described, TensorStorageMetadata):
            continue
        with open(release / info.relative_path, "rb") as stream:
            stream.seek(info.offset)
            chunk = torch.load(io.BytesIO(stream.read(info.length)), weights_only=True)
        if index.fqn not in found:
            found[index.fqn] = torch.full(described.size, float("nan"), dtype=described.properties.dtype)
        assert chunk.dtype == described.properties.dtype
        place = tuple(slice(begin, begin + size) for begin, size in zip(index.offset, chunk.shape, strict=True))
        found[index.fqn][place] = chunk
    return found


@pytest.mark.parametrize("mtp", [True, False])
def test_every_value_is_in_its_place_under_its_megatron_name(tmp_path: Path, mtp: bool) -> None:
    write_tiny_model(tmp_path / "bf16", overrides=ODD_SIZES, mtp=mtp, fp8=False)
    convert(tmp_path / "bf16", tmp_path / "ref", workers=2)
    source, release = stored(tmp_path / "bf16"), read_release(tmp_path / "ref" / "release")
    seen = set()
    for name in tensors(read_model_shape(tmp_path / "bf16")):
        if name.copy_of:
            assert torch.equal(source[name.hf], source[name.copy_of])
            continue
        box = tuple(slice(begin, begin + size) for begin, size in zip(name.offset, name.box, strict=True))
        for key in filter(None, (name.key, name.te_key)):
            assert torch.equal(release[key][box].view(name.shape), source[name.hf]), name.hf
            seen.add(key)
    assert seen == release.keys()
    # Every place has a value: no box of the table is left out.
    assert all(bool(torch.isfinite(value).all()) for value in release.values())
    experts = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
    assert release[experts].shape == (4, 320, 192)
    up = source["model.layers.1.mlp.experts.3.up_proj.weight"]
    assert torch.equal(release[experts][3, 160:], up)
    assert release["decoder.layers.1.mlp.router.expert_bias"].dtype == torch.float32
    assert any(key.startswith("mtp.layers.0.") for key in release) == mtp


def test_the_checkpoint_has_the_form_that_ref_load_reads(whole: dict[str, bytes]) -> None:
    assert whole[TRACKER] == b"release\n"
    data = {name.removeprefix("release/") for name in whole if name != TRACKER}
    assert data - SMALL == {f"__{number}_0.distcp" for number in range(4)}
    assert json.loads(whole["release/metadata.json"]) == {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
    common = torch.load(io.BytesIO(whole["release/common.pt"]), weights_only=False)
    assert (common["checkpoint_version"], common["iteration"]) == (3.0, 0)


def test_the_manifest_accounts_for_every_byte(whole: dict[str, bytes]) -> None:
    manifest = json.loads(whole["release/manifest.json"])
    files = {name.removeprefix("release/"): data for name, data in whole.items() if name != TRACKER}
    assert manifest["files"].keys() == files.keys() - {"manifest.json", "source.json"}
    covered = dict.fromkeys(manifest["files"], 0)
    for chunks in manifest["chunks"].values():
        for _, _, name, offset, length, xxh3 in chunks:
            assert xxhash.xxh3_64_hexdigest(files[name][offset : offset + length]) == xxh3
            covered[name] += length
    for name, record in manifest["files"].items():
        assert record["size"] == len(files[name])
        if record["xxh3"] is None:
            assert covered[name] == record["size"]
        else:
            assert xxhash.xxh3_64_hexdigest(files[name]) == record["xxh3"]


def test_the_source_is_recorded_with_the_hash_of_every_tensor(forms: Path, whole: dict[str, bytes]) -> None:
    record = json.loads(whole["release/source.json"])
    assert record["path"] == str(forms / "bf16")
    assert record["config"] == json.loads((forms / "bf16" / "config.json").read_text())
    assert record["tensors"] == {
        name: xxhash.xxh3_64_hexdigest(value.view(torch.uint8).numpy().tobytes())
        for name, value in stored(forms / "bf16").items()
    }


def test_from_fp8_directly_only_the_source_is_another(forms: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    assert convert(forms / "fp8", tmp_path / "ref", workers=2).published
    direct = contents(tmp_path / "ref")
    assert {name for name in whole if direct[name] != whole[name]} == {"release/source.json"}
    assert direct.keys() == whole.keys()


@pytest.mark.parametrize("seed", range(4))
def test_tasks_in_any_order_and_number_end_in_the_same_bytes(
    forms: Path, whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    tasks = []
    for num_tasks in (1, 2, 3, 4, 6):
        tasks += [(index, num_tasks) for index in range(num_tasks)] * 2
    generator.shuffle(tasks)
    published = [
        convert(forms / "bf16", tmp_path / "ref", index, num_tasks, workers=generator.choice((1, 3))).published
        for index, num_tasks in tasks
    ]
    assert published == sorted(published) and published[-1]
    assert contents(tmp_path / "ref") == whole


def test_before_the_last_task_there_is_no_checkpoint(forms: Path, tmp_path: Path) -> None:
    for index in (3, 0, 2):
        assert not convert(forms / "bf16", tmp_path / "ref", index, 4).published
        assert [path.name for path in (tmp_path / "ref").iterdir()] == [".convert"]
    assert convert(forms / "bf16", tmp_path / "ref", 1, 4).published


@pytest.mark.parametrize("first", [None, 0])
def test_two_runs_of_the_last_task_at_once_end_in_one_checkpoint(
    forms: Path, whole: dict[str, bytes], tmp_path: Path, first: int | None
) -> None:
    for attempt in range(4):
        root = tmp_path / f"ref-{attempt}"
        if first is not None:
            convert(forms / "bf16", root, first, 2)
        index, num_tasks = (0, 1) if first is None else (1, 2)
        assert at_once([lambda: published(convert(forms / "bf16", root, index, num_tasks))] * 2) == [0, 0]  # noqa: B023
        assert contents(root) == whole


def test_two_that_publish_at_once_publish_one_checkpoint(forms: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    assert killed_at_rename(1, lambda: convert(forms / "bf16", complete), after=False)
    for attempt in range(12):
        root = tmp_path / f"ref-{attempt}"
        shutil.copytree(complete, root)
        assert at_once([lambda: published(convert(forms / "bf16", root))] * 3) == [0, 0, 0]  # noqa: B023
        assert contents(root) == whole
        shutil.rmtree(root)


@dataclass(frozen=True)
class Overtaken(Conversion):
    """A conversion that another task finishes at the moment at which this one first looks for the staged files."""

    @property
    def staged(self) -> Path:
        if not self.release.exists():
            convert(self.source.directory, self.root)
        return super().staged


def overtaken(source: Path, root: Path) -> Overtaken:
    plan = conversion(source, root)
    return Overtaken(**{field.name: getattr(plan, field.name) for field in fields(plan)})


def test_overtaken_while_it_begins_a_task_writes_nothing(forms: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    outcome = run_convert_task(overtaken(forms / "bf16", tmp_path / "ref"), 0, 2, 1, quiet)
    assert (outcome.published, outcome.written_bytes) == (True, 0)
    assert contents(tmp_path / "ref") == whole


def test_overtaken_while_it_publishes_a_task_finds_the_checkpoint_complete(
    forms: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    assert killed_at_rename(1, lambda: convert(forms / "bf16", tmp_path / "ref"), after=False)
    assert run_convert_task(overtaken(forms / "bf16", tmp_path / "ref"), 0, 1, 1, quiet).published
    assert contents(tmp_path / "ref") == whole


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_publishing_the_next_run_ends_in_the_same_bytes(
    forms: Path, whole: dict[str, bytes], tmp_path: Path, after: bool
) -> None:
    steps = 6 + 1 + 1  # files that hold no chunks, the directory, the tracker
    for step in range(1, steps + 2):
        root = tmp_path / f"ref-{step}"
        assert killed_at_rename(step, lambda: convert(forms / "bf16", root), after=after) == (step <= steps)  # noqa: B023
        assert (root / TRACKER).exists() == (step > steps or (after and step == steps))
        assert (root / "release").exists() == (step >= steps or (after and step == steps - 1))
        assert convert(forms / "bf16", root).published
        assert contents(root) == whole
        shutil.rmtree(root)


def test_the_balance_of_tasks_over_bytes(forms: Path, tmp_path: Path) -> None:
    source = open_checkpoint(forms / "bf16")
    plan = plan_conversion(source, tmp_path, make_slices(3, 1, None, None, 4, "bytes"), 2)
    loads = [sum(file.size_bytes for file in plan.files_of_task(index, 4)) for index in range(4)]
    largest = max(source.entries[name.hf].size_bytes for name in source.names)
    assert max(loads) - min(loads) <= 2 * largest
    assert sum(loads) == sum(source.entries[name.hf].size_bytes for name in source.names if not name.copy_of)


def test_a_bit_that_flips_before_publishing_is_noticed_and_healed(
    forms: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    root = tmp_path / "ref"
    convert(forms / "bf16", root, 0, 2)
    plan = conversion(forms / "bf16", root)
    staged = plan.staged / plan.files[0].name
    flip_bit(staged, staged.stat().st_size // 2)
    with pytest.raises(CheckpointProblems, match=rf"{staged}: decoder\S+ at \[.*\] has xxh3 \w+ in bytes") as caught:
        convert(forms / "bf16", root, 1, 2)
    assert "these files will be written again when their tasks are run again" in str(caught.value)
    assert not (root / "release").exists() and not (root / TRACKER).exists()
    # The task that was right has nothing to write; the other one writes its file again.
    assert not convert(forms / "bf16", root, 1, 2).published
    healed = convert(forms / "bf16", root, 0, 2)
    assert healed.published
    assert healed.written_bytes == plan.files[0].size_bytes
    assert contents(root) == whole


def test_a_source_byte_that_flips_after_the_cast_is_noticed(forms: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "bf16", tmp_path / "bf16"))
    file = sorted(source.glob("*.safetensors"))[1]
    flip_bit(file, file.stat().st_size - 100)
    said = rf"{file}: model\.\S+ has xxh3 \w+; \w+ was written there: the file has changed since; remove {source} and"
    with pytest.raises(CheckpointError, match=said):
        convert(source, tmp_path / "ref")
    assert not (tmp_path / "ref" / "release").exists()
    shutil.rmtree(source)
    cast(forms / "fp8", source)
    assert convert(source, tmp_path / "ref").published


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("model.layers.3.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.layers.3.shared_head.head.weight", "lm_head.weight"),
    ],
)
def test_copies_that_differ_are_refused(forms: Path, tmp_path: Path, name: str, original: str) -> None:
    source = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))
    file = file_of(source, name)
    edit_shard(file, lambda tensors: tensors[name][5, 7].fill_(0.5))
    with pytest.raises(CheckpointProblems, match=rf"{file}: {name} is not the copy of {original} that it is in"):
        convert(source, tmp_path / "ref")
    assert not (tmp_path / "ref" / "release").exists()


def test_copies_that_differ_can_be_put_right(forms: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))
    name = "model.layers.3.embed_tokens.weight"
    file = file_of(source, name)
    right = stored(source)[name][5, 7].clone()
    edit_shard(file, lambda tensors: tensors[name][5, 7].fill_(0.5))
    with pytest.raises(CheckpointProblems, match="is not the copy of"):
        convert(source, tmp_path / "ref")
    edit_shard(file, lambda tensors: tensors[name][5, 7].copy_(right))
    assert convert(source, tmp_path / "ref").published


def test_a_release_that_has_lost_a_file_is_not_called_complete(forms: Path, tmp_path: Path) -> None:
    convert(forms / "bf16", tmp_path / "ref")
    lost = tmp_path / "ref" / "release" / "__1_0.distcp"
    os.truncate(lost, 100)
    with pytest.raises(CheckpointError, match=rf"{lost}: is missing, or has not the \d+ bytes"):
        convert(forms / "bf16", tmp_path / "ref")


def test_a_source_that_changes_between_tasks_is_converted_anew(forms: Path, tmp_path: Path) -> None:
    source, root = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8")), tmp_path / "ref"
    assert not convert(source, root, 0, 2).published
    revise(source)
    assert not convert(source, root, 1, 2).published
    assert convert(source, root, 0, 2).published
    convert(source, tmp_path / "whole")
    assert contents(root) == contents(tmp_path / "whole")


def test_a_directory_that_holds_something_else_is_left_as_it_is(forms: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(forms / "torch_dist", tmp_path / "ref"))  # with other slices
    before = contents(root)
    with pytest.raises(CheckpointError, match=r"ref/release: was made from this very source, cut in another way"):
        convert(forms / "bf16", root)
    with pytest.raises(CheckpointError, match=r"ref/release: already holds something that was not made from"):
        convert(forms / "fp8", root)
    (root / TRACKER).write_text("20\n")
    with pytest.raises(CheckpointError, match=r"ref: holds the commits of a training run"):
        convert(forms / "bf16", root)
    (root / TRACKER).write_bytes(before[TRACKER])
    assert contents(root) == before


def test_a_manifest_of_somebody_else_is_no_matter(forms: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))
    (source / "manifest.json").write_text('{"files": ["a", "b"]}')
    assert convert(source, tmp_path / "ref").published
    made = contents(tmp_path / "ref")
    assert {name for name in whole if made[name] != whole[name]} == {"release/source.json"}


def test_expert_slices_must_divide_the_experts(forms: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expert_model_parallel_size = 3 does not divide the model's 4 experts"):
        conversion(forms / "bf16", tmp_path / "ref", expert=3)


def test_layers_that_cannot_be_split_are_said_with_the_arithmetic() -> None:
    said = r"convert: 5 layers cannot be shared evenly by 2 stages; a last stage of 1 or 2 layers would \(convert\.dec"
    with pytest.raises(CheckpointError, match=said):
        make_slices(5, 2, None, None, 1, "layout")


def test_a_lost_tracker_comes_back(forms: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    convert(forms / "bf16", tmp_path / "ref")
    (tmp_path / "ref" / TRACKER).unlink()
    outcome = convert(forms / "bf16", tmp_path / "ref", 1, 4)
    assert (outcome.published, outcome.written_bytes) == (True, 0)
    assert (tmp_path / "ref" / TRACKER).read_bytes() == whole[TRACKER]
