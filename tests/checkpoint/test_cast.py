"""The cast: values, files, records, and tasks in any order, number and company."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import xxhash
from safetensors import safe_open

from r1hpc.checkpoint.cast import Cast, plan_cast, run_cast_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.errors import CheckpointError
from r1hpc.rehearsal.tiny_model import write_tiny_model
from tests.checkpoint.runs import (
    INDEX,
    at_once,
    cast,
    contents,
    edit_json,
    edit_shard,
    file_of,
    killed_at_rename,
    published,
    quiet,
    revise,
    stored,
)

SCALE = "_scale_inv"


@pytest.fixture
def source(forms: Path, tmp_path: Path) -> Path:
    """A source of the test's own."""
    return Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one undisturbed task makes of it."""
    cast(source, tmp_path / "whole")
    return contents(tmp_path / "whole")


def dequantized(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The format written plainly: each number times the scale of its 128 x 128 block in float32, rounded once."""
    rows, columns = codes.shape
    each = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (codes.to(torch.float32) * each).to(torch.bfloat16)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sizes as powers of two, no prediction layers: `fp8` and its cast `bf16`."""
    base = tmp_path_factory.mktemp("plain")
    write_tiny_model(base / "fp8", overrides={"num_hidden_layers": 2, "n_routed_experts": 4}, mtp=False)
    assert cast(base / "fp8", base / "bf16", workers=2).published
    return base


@pytest.mark.parametrize("of", ["forms", "plain"])
def test_every_value_is_its_code_times_its_blocks_scale(request: pytest.FixtureRequest, of: str) -> None:
    base: Path = request.getfixturevalue(of)
    before, after = stored(base / "fp8"), stored(base / "bf16")
    assert after.keys() == {name for name in before if not name.endswith(SCALE)}
    quantized = 0
    for name, values in after.items():
        expected = before[name]
        if expected.dtype == torch.float8_e4m3fn:
            quantized += 1
            expected = dequantized(expected, before[name + SCALE])
        assert values.dtype == expected.dtype, name
        assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8)), name
    assert quantized == sum(name.endswith(SCALE) for name in before) > 20
    bias = next(name for name in after if name.endswith("e_score_correction_bias"))
    assert after[bias].dtype == torch.float32


def test_the_directory_is_a_complete_bf16_checkpoint(forms: Path) -> None:
    fp8, bf16 = forms / "fp8", forms / "bf16"
    assert {file.name for file in bf16.iterdir()} == {file.name for file in fp8.iterdir()} | {"manifest.json"}
    index = json.loads((bf16 / INDEX).read_text())
    tensors = stored(bf16)
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    places: dict[str, str] = {}
    for file in bf16.glob("*.safetensors"):
        with safe_open(file, "pt") as reader:
            assert reader.metadata() == {"format": "pt"}
            places |= dict.fromkeys(reader.keys(), file.name)
    assert index["weight_map"] == places
    before = json.loads((fp8 / INDEX).read_text())["weight_map"]
    assert {name: before[name] for name in places} == places
    config = json.loads((fp8 / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "fp8"
    assert json.loads((bf16 / "config.json").read_text()) == config
    for companion in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (bf16 / companion).read_bytes() == (fp8 / companion).read_bytes()
    assert not open_checkpoint(bf16).has_fp8


def test_the_manifest_has_the_hash_of_every_tensor(forms: Path) -> None:
    manifest = json.loads((forms / "bf16" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["source"] == {
        "path": str(forms / "fp8"),
        "identity": open_checkpoint(forms / "fp8").identity,
    }
    for name, record in manifest["files"].items():
        file = forms / "bf16" / name
        assert record["size"] == file.stat().st_size
        with safe_open(file, "pt") as reader:
            hashes = {
                key: xxhash.xxh3_64_hexdigest(reader.get_tensor(key).view(torch.uint8).numpy().tobytes())
                for key in reader.keys()  # noqa: SIM118 (no mapping)
            }
        assert record["tensors"] == hashes
    assert sorted(manifest["files"]) == sorted(file.name for file in (forms / "bf16").glob("*.safetensors"))


def test_what_lies_beside_the_weights_comes_along(source: Path, tmp_path: Path) -> None:
    (source / "modeling_deepseek.py").write_text("# code\n")
    (source / "LICENSE").write_text("MIT\n")
    for left_behind in ("pytorch_model.bin", ".gitattributes", "old.safetensors"):
        (source / left_behind).write_bytes(b"x")
    (source / "figures").mkdir()
    cast(source, tmp_path / "bf16")
    made = {file.name for file in (tmp_path / "bf16").iterdir()}
    assert {"modeling_deepseek.py", "LICENSE"} <= made
    assert not {"pytorch_model.bin", ".gitattributes", "old.safetensors", "figures"} & made


@pytest.mark.parametrize("seed", range(4))
def test_tasks_in_any_order_and_number_end_in_the_same_bytes(
    source: Path, whole: dict[str, bytes], tmp_path: Path, seed: int
) -> None:
    generator = random.Random(seed)
    tasks = []
    for num_tasks in (1, 2, 3, 5):
        tasks += [(index, num_tasks) for index in range(num_tasks)] * 2
    generator.shuffle(tasks)
    published = []
    for index, num_tasks in tasks:
        outcome = cast(source, tmp_path / "bf16", index, num_tasks, workers=generator.choice((1, 2)))
        published.append(outcome.published)
    # Once it is complete it stays so, and nothing is written again.
    assert published == sorted(published) and published[-1]
    assert contents(tmp_path / "bf16") == whole


def test_before_the_last_task_there_is_no_checkpoint(source: Path, tmp_path: Path) -> None:
    for index in (2, 0):
        assert not cast(source, tmp_path / "bf16", index, 3).published
        assert not (tmp_path / "bf16").exists()
    assert cast(source, tmp_path / "bf16", 1, 3).published


def test_a_task_that_is_run_again_writes_nothing(source: Path, tmp_path: Path) -> None:
    assert cast(source, tmp_path / "bf16", 0, 2).written_bytes > 0
    assert cast(source, tmp_path / "bf16", 0, 2).written_bytes == 0
    assert cast(source, tmp_path / "bf16", 1, 2).written_bytes > 0
    assert cast(source, tmp_path / "bf16", 1, 2).written_bytes == 0


def test_every_file_has_one_task_and_tasks_have_nearly_equal_bytes(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "fp8", shards=23)
    plan = plan_cast(tmp_path / "fp8", tmp_path / "bf16")
    assert len(plan.files) == 23
    for num_tasks in (1, 2, 4, 7, 30):
        dealt = [plan.files_of_task(index, num_tasks) for index in range(num_tasks)]
        assert sorted(file.name for files in dealt for file in files) == [file.name for file in plan.files]
        loads = [sum(file.size_bytes for file in files) for files in dealt]
        # Largest first: the fullest one was the emptiest before its last file.
        assert max(loads) - min(loads) <= max(file.size_bytes for file in plan.files)


@pytest.mark.parametrize("first", [None, 0])
def test_two_runs_of_the_last_task_at_once_end_in_one_checkpoint(
    source: Path, whole: dict[str, bytes], tmp_path: Path, first: int | None
) -> None:
    for attempt in range(4):
        target = tmp_path / f"bf16-{attempt}"
        if first is not None:
            cast(source, target, first, 2)
        index, num_tasks = (0, 1) if first is None else (1, 2)
        assert at_once([lambda: published(cast(source, target, index, num_tasks))] * 2) == [0, 0]  # noqa: B023
        assert contents(target) == whole


def test_two_that_publish_at_once_publish_one_checkpoint(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    complete = tmp_path / "complete"
    assert killed_at_rename(1, lambda: cast(source, complete), after=False)
    for attempt in range(20):
        target = tmp_path / f"bf16-{attempt}"
        shutil.copytree(plan_cast(source, complete).stagings, plan_cast(source, target).stagings)
        assert at_once([lambda: published(cast(source, target))] * 3) == [0, 0, 0]  # noqa: B023
        assert contents(target) == whole
        shutil.rmtree(target)


@dataclass(frozen=True)
class Overtaken(Cast):
    """A cast that another task finishes at the moment at which this one first looks for its directory."""

    @property
    def staging(self) -> Path:
        if not (self.target / INDEX).exists():
            cast(self.source.directory, self.target)
        return super().staging


def overtaken(source: Path, target: Path) -> Overtaken:
    plan = plan_cast(source, target)
    return Overtaken(plan.source, plan.target, plan.files)


def test_overtaken_while_it_begins_a_task_writes_nothing(source: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    outcome = run_cast_task(overtaken(source, tmp_path / "bf16"), 0, 2, 1, quiet)
    assert (outcome.published, outcome.written_bytes) == (True, 0)
    assert contents(tmp_path / "bf16") == whole


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_step_of_publishing_the_next_run_ends_in_the_same_bytes(
    source: Path, whole: dict[str, bytes], tmp_path: Path, after: bool
) -> None:
    steps = 1 + 3 + 1 + 1 + 1  # manifest, companions, configuration, index, the directory
    for step in range(1, steps + 2):
        target = tmp_path / f"bf16-{step}"
        assert killed_at_rename(step, lambda: cast(source, target), after=after) == (step <= steps)  # noqa: B023
        assert target.exists() == (step > steps or (after and step == steps))
        assert cast(source, target).published
        assert contents(target) == whole
        shutil.rmtree(target)


def test_a_source_that_changes_between_tasks_is_cast_anew(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "bf16"
    assert not cast(source, target, 0, 2).published
    revise(source)
    assert not cast(source, target, 1, 2).published
    assert cast(source, target, 0, 2).published
    cast(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_what_was_cast_of_the_source_as_it_was_is_never_taken_for_the_new_one(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "bf16"
    old = plan_cast(source, target)
    cast(source, target, 0, 2)
    revise(source)
    assert not cast(source, target, 1, 2).published
    # Tasks of the old one, stopped until now, find that the source is another.
    with pytest.raises(CheckpointError, match="has been written to since this task began"):
        run_cast_task(old, 1, 2, 1, quiet)
    assert cast(source, target, 0, 2).published
    cast(source, tmp_path / "whole")
    assert contents(target) == contents(tmp_path / "whole")


def test_a_revision_with_the_same_headers_and_times_is_another_source(source: Path, tmp_path: Path) -> None:
    times = {file: file.stat().st_mtime_ns for file in source.glob("*.safetensors")}
    assert not cast(source, tmp_path / "bf16", 0, 2).published
    revise(source)
    for file, time_ns in times.items():
        os.utime(file, ns=(time_ns, time_ns))
    assert not cast(source, tmp_path / "bf16", 1, 2).published


def test_a_file_replaced_after_it_was_read_keeps_the_cast_from_being_published(source: Path, tmp_path: Path) -> None:
    plan = plan_cast(source, tmp_path / "bf16")
    assert not run_cast_task(plan, 0, 2, 1, quiet).published
    read = plan.files_of_task(0, 2)[0]
    os.utime(source / read.name, (1_700_000_000, 1_700_000_000))
    with pytest.raises(CheckpointError, match=r"(has changed|has been written to) since this task began"):
        run_cast_task(plan, 1, 2, 1, quiet)
    assert not (tmp_path / "bf16").exists()


def test_a_source_that_is_written_to_while_it_is_read_is_refused(source: Path, tmp_path: Path) -> None:
    plan = plan_cast(source, tmp_path / "bf16")
    touched = sorted(source.glob("*.safetensors"))[1]
    os.utime(touched, (1_700_000_000, 1_700_000_000))
    with pytest.raises(CheckpointError, match=rf"{touched.name}: has been written to since this task began"):
        run_cast_task(plan, 0, 1, 1, quiet)
    assert not (tmp_path / "bf16" / INDEX).exists()


@pytest.mark.parametrize("made", [True, False])
def test_a_target_that_is_a_link_appears_where_the_link_points(
    source: Path, whole: dict[str, bytes], tmp_path: Path, made: bool
) -> None:
    elsewhere = tmp_path / "scratch"
    elsewhere.mkdir()
    if made:
        (elsewhere / "bf16").mkdir()
    (tmp_path / "link").symlink_to(elsewhere / "bf16")
    assert cast(source, tmp_path / "link").published
    assert contents(elsewhere / "bf16") == whole
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["bf16"]


def test_a_target_that_holds_another_checkpoint_is_left_as_it_is(forms: Path, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "bf16"
    shutil.copytree(forms / "bf16", target)
    edit_json(target / "manifest.json", lambda manifest: manifest["source"].update(identity="another"))
    before = contents(target)
    with pytest.raises(CheckpointError, match=r"bf16: already holds something that was not made from .*/fp8 as it is"):
        cast(source, target)
    (target / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="already holds something"):
        cast(source, target)
    (target / INDEX).unlink()
    with pytest.raises(CheckpointError, match="already holds something"):
        cast(source, target)
    assert contents(target) == {name: data for name, data in before.items() if name not in ("manifest.json", INDEX)}


def test_a_file_that_is_lost_after_publishing_is_named(source: Path, tmp_path: Path) -> None:
    cast(source, tmp_path / "bf16")
    lost = sorted((tmp_path / "bf16").glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"{lost}: is missing, or has not the \d+ bytes .* remove {lost.parent}"):
        cast(source, tmp_path / "bf16")


def test_an_export_in_fp8_that_was_changed_is_refused_before_it_is_published(forms: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(forms / "fp8", tmp_path / "fp8"))
    scale = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    tensors = {
        name: xxhash.xxh3_64_hexdigest(value.view(torch.uint8).numpy().data) for name, value in stored(source).items()
    }
    manifest = {"format": 1, "files": {"all": {"size": 0, "tensors": tensors}}, "source": {"path": "", "identity": ""}}
    (source / "manifest.json").write_text(json.dumps(manifest))
    assert cast(source, tmp_path / "bf16").published
    edit_shard(file_of(source, scale), lambda shard: shard[scale].mul_(0.5))
    with pytest.raises(CheckpointError, match=rf"{scale} has xxh3 \w+; {tensors[scale]} was written there"):
        cast(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_checkpoint_without_fp8_and_the_source_itself_are_refused(forms: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no fp8 weights.*leave ckpt.bf16_checkpoint out"):
        cast(forms / "bf16", tmp_path / "again")
    with pytest.raises(CheckpointError, match=r"is the source itself; set ckpt.bf16_checkpoint"):
        cast(source, source)
