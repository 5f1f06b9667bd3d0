"""Reading torch_dist checkpoints: any grid, both spellings, and metadata that is not to be trusted."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path, PosixPath

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.state_dict_saver import save

from r1hpc.checkpoint.boxes import Box, coverage_problem, whole
from r1hpc.checkpoint.chunk_reader import ChunkReader, read_tensor
from r1hpc.checkpoint.dcp_pickle import read_dcp_metadata
from r1hpc.checkpoint.names import TensorName, tensors
from r1hpc.checkpoint.placement import Place, find_place
from r1hpc.checkpoint.structure import coverage_problems, file_problems
from r1hpc.checkpoint.torch_dist import open_torch_dist, resolve
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.plan.model_shape import read_model_shape
from tests.checkpoint.stored import Cuts, edit_metadata, located, stored_tensor, write_torch_dist

ROOT = Path(__file__).parents[2]
KEY = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"


def numbered(*shape: int) -> torch.Tensor:
    """A tensor whose every element differs, in bf16 exactly."""
    count = torch.Size(shape).numel()
    assert count <= 512
    return (torch.arange(count) - 256).to(torch.bfloat16).view(shape)


@pytest.mark.parametrize(
    "cuts",
    [
        [[4], [6], [8]],  # one chunk
        [[1, 2, 3, 4], [3, 6], [8]],  # each expert's gate and up, as convert and Megatron write them
        [[2, 4], [6], [8]],  # experts stacked by expert parallelism
        [[4], [6], [1, 4, 8]],  # columns, of unequal width
        [[1, 4], [2, 6], [5, 8]],
    ],
)
def test_any_box_is_read_from_any_grid(tmp_path: Path, cuts: Cuts) -> None:
    tensor = numbered(4, 6, 8)
    write_torch_dist(tmp_path / "c", {KEY: (tensor, cuts)})
    reader = ChunkReader(open_torch_dist(tmp_path / "c"))
    assert torch.equal(read_tensor(reader, KEY), tensor)
    assert torch.equal(reader.read_box(KEY, Box((2, 3, 0), (1, 3, 8))), tensor[2:3, 3:6])
    assert torch.equal(reader.read_box(KEY, Box((1, 2, 3), (3, 3, 4))), tensor[1:4, 2:5, 3:7])
    out = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    assert reader.read_box(KEY, Box((3, 5, 7), (1, 1, 1)), out) is out
    assert out.item() == 191 - 256
    reader.close()


def test_what_torch_itself_writes_is_read(tmp_path: Path) -> None:
    transposed = numbered(6, 8).t()
    state = {"a": numbered(5, 7), "bias": torch.tensor([0.1, -0.0]), "scalar": torch.tensor(3.5), "t": transposed}
    save(dict(state), checkpoint_id=tmp_path / "c", no_dist=True)
    reader = ChunkReader(open_torch_dist(tmp_path / "c"))
    for key, tensor in state.items():
        read = read_tensor(reader, key)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
    assert torch.equal(reader.read_box("t", Box((2, 1), (3, 4))), transposed[2:5, 1:5])


def test_a_missing_chunk_is_named_and_only_who_needs_it_fails(tmp_path: Path) -> None:
    def drop(metadata: Metadata) -> None:
        chunk = stored_tensor(metadata, KEY).chunks.pop(1)
        del metadata.storage_data[MetadataIndex(KEY, chunk.offsets)]

    write_torch_dist(tmp_path / "c", {KEY: (numbered(2, 6, 8), [[1, 2], [3, 6], [8]])})
    edit_metadata(tmp_path / "c", drop)
    reader = ChunkReader(open_torch_dist(tmp_path / "c"))
    assert reader.read_box(KEY, Box((1, 0, 0), (1, 6, 8)))[0, 0, 0] == 48 - 256
    with pytest.raises(
        CheckpointError, match=r"24 of 48 elements are missing \(among them \[0:1, 3:6, 0:8\]\)"
    ) as error:
        reader.read_box(KEY, Box((0, 0, 0), (1, 6, 8)))
    assert KEY in str(error.value)
    with pytest.raises(CheckpointError, match="has no tensor nowhere"):
        reader.read_box("nowhere", Box((0,), (1,)))


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([((0, 0), (2, 4)), ((2, 0), (2, 4))], None),
        ([((0, 0), (4, 1)), ((0, 1), (4, 3))], None),
        ([((0, 0), (2, 4)), ((1, 0), (3, 4))], "the parts [0:2, 0:4] and [1:4, 0:4] overlap"),
        # As many elements as there are, one of them twice and one not at all.
        ([((0, 0), (3, 4)), ((2, 0), (1, 4))], "the parts [0:3, 0:4] and [2:3, 0:4] overlap"),
        ([((0, 0), (3, 4)), ((3, 0), (1, 3))], "1 of 16 elements are missing (among them [3:4, 3:4])"),
        ([((0, 0), (5, 4))], "the part [0:5, 0:4] lies outside of [0:4, 0:4]"),
    ],
)
def test_parts_must_fill_a_box_exactly_once(
    parts: list[tuple[tuple[int, int], tuple[int, int]]], problem: str | None
) -> None:
    boxes = [Box(offset, sizes) for offset, sizes in parts]
    assert coverage_problem(whole((4, 4)), boxes) == problem


def test_a_cut_file_is_named_with_the_tensor_that_it_cuts(tmp_path: Path) -> None:
    write_torch_dist(tmp_path / "c", {KEY: (numbered(4, 6, 8), [[4], [6], [8]])})
    file = tmp_path / "c" / "__0_0.distcp"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        read_tensor(ChunkReader(open_torch_dist(tmp_path / "c")), KEY)
    assert str(file) in str(error.value)
    assert KEY in str(error.value)


def test_an_archive_that_holds_another_tensor_than_the_metadata_says_is_refused(tmp_path: Path) -> None:
    write_torch_dist(tmp_path / "c", {"a": (numbered(4, 2), [[4], [2]]), "b": (numbered(2, 4), [[2], [4]])})

    def swap(metadata: Metadata) -> None:
        a, b = MetadataIndex("a", torch.Size([0, 0])), MetadataIndex("b", torch.Size([0, 0]))
        metadata.storage_data[a], metadata.storage_data[b] = metadata.storage_data[b], metadata.storage_data[a]

    edit_metadata(tmp_path / "c", swap)
    with pytest.raises(CheckpointError, match=r"it holds \[2, 4\] torch.bfloat16 where the metadata says \[4, 2\]"):
        read_tensor(ChunkReader(open_torch_dist(tmp_path / "c")), "a")


def test_the_tracker_leads_to_a_release_or_an_iteration(tmp_path: Path) -> None:
    for name in ("release", "iter_0000040"):
        write_torch_dist(tmp_path / name, {"a": (numbered(2), [[2]])})
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    tracker.write_text("release\n")
    assert resolve(tmp_path) == tmp_path / "release"
    tracker.write_text("40")
    assert resolve(tmp_path) == tmp_path / "iter_0000040"
    assert resolve(tmp_path / "release") == tmp_path / "release"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (None, "is no torch_dist checkpoint: it has neither .metadata nor latest_checkpointed_iteration.txt"),
        ("41", "names 41, but .*iter_0000041/.metadata is not there"),
        ("../../elsewhere", "says '../../elsewhere'; it must say \"release\" or the number"),
    ],
)
def test_a_tracker_that_leads_nowhere_is_an_error(tmp_path: Path, word: str | None, message: str) -> None:
    if word is not None:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(word)
    with pytest.raises(CheckpointError, match=message):
        resolve(tmp_path)


def test_metadata_that_contradicts_itself_is_refused_with_every_reason(tmp_path: Path) -> None:
    def edit(metadata: Metadata) -> None:
        stored_tensor(metadata, "a").chunks[0].offsets = torch.Size([1])
        index = MetadataIndex("b", torch.Size([0]))
        metadata.storage_data[index].relative_path = "../../etc/passwd"

    write_torch_dist(tmp_path / "c", {"a": (numbered(2), [[2]]), "b": (numbered(2), [[2]])})
    edit_metadata(tmp_path / "c", edit)
    with pytest.raises(CheckpointProblems) as error:
        open_torch_dist(tmp_path / "c")
    told = "\n".join(error.value.problems)
    assert "b: is placed in ../../etc/passwd, outside of the checkpoint" in told
    assert "a: no file is named for its part [1:3]" in told
    assert "a at [0]: __0_0.distcp has it, but no tensor claims it" in told


class _Call:
    """A pickle of it calls `function` when it is loaded."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("hidden_in", ["the metadata", "a field of it"])
def test_a_pickle_that_calls_code_is_refused_and_does_not_run(tmp_path: Path, hidden_in: str) -> None:
    ran = tmp_path / "ran"
    evil = _Call(os.mkdir, str(ran))
    content = evil if hidden_in == "the metadata" else Metadata({}, planner_data=evil)
    file = tmp_path / ".metadata"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"asks for posix.mkdir, which has no place"):
        read_dcp_metadata(file)
    assert not ran.exists()
    pickle.loads(file.read_bytes())
    assert ran.exists(), "the pickle would not have run code anyway"


def test_a_broken_pickle_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".metadata"
    for content in (b"", b"no pickle", pickle.dumps(torch.Size([2]))):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.metadata: (is no metadata|holds Size)"):
            read_dcp_metadata(file)


def test_a_pickle_cannot_change_a_class_of_this_process(tmp_path: Path) -> None:
    """BUILD with the state of slots gives attributes to whatever it is told to build, a class too."""
    classes = ["pathlib PosixPath", "torch.distributed.checkpoint.metadata Metadata", "torch.serialization _get_layout"]
    classes += ["torch.distributed.checkpoint.metadata TensorProperties", "collections OrderedDict", "torch Size"]
    file = tmp_path / ".metadata"
    for place in classes:
        module, name = place.encode().split()
        # The class, then (None, {"fqn": OrderedDict}), then BUILD, then a whole and honest Metadata.
        prefix = b"c" + module + b"\n" + name + b"\n(N(S'fqn'\nccollections\nOrderedDict\ndtb0"
        file.write_bytes(prefix + pickle.dumps(Metadata({}), protocol=2)[2:])
        with suppress(CheckpointError):
            read_dcp_metadata(file)
    assert not hasattr(PosixPath, "fqn")
    assert not hasattr(Metadata, "fqn")
    assert not hasattr(torch.serialization._get_layout, "fqn")
    assert not hasattr(TensorProperties, "fqn")


def test_a_pickle_that_asks_for_memory_is_refused(tmp_path: Path) -> None:
    file = tmp_path / ".metadata"
    for content in (b"Nr\xff\xff\xff\x0f.", b"Np268435455\n."):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"it numbers an object 268,435,455 in \d+ bytes"):
            read_dcp_metadata(file)


def test_no_bit_that_flips_in_the_metadata_is_more_than_an_error(tmp_path: Path) -> None:
    """Every seventh bit of the file: what is not refused can be judged."""
    write_torch_dist(tmp_path / "c", {KEY: (numbered(2, 6, 8), [[1, 2], [6], [8]]), "b": (numbered(2), [[2]])})
    file = tmp_path / "c/.metadata"
    good = file.read_bytes()
    refused = opened = 0
    for bit in range(0, 8 * len(good), 7):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        try:
            checkpoint = open_torch_dist(tmp_path / "c")
            [*coverage_problems(checkpoint), *file_problems(checkpoint, {})]
            opened += 1
        except (CheckpointError, CheckpointProblems) as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 400
    assert opened > 40


def test_a_broken_archive_is_told_in_words_of_ours(tmp_path: Path) -> None:
    write_torch_dist(tmp_path / "c", {KEY: (numbered(4, 6, 8), [[4], [6], [8]])})
    info = located(tmp_path / "c", KEY, (0, 0, 0))
    file = tmp_path / "c" / info.relative_path
    for damage in (b"\0" * info.length, pickle.dumps(_Call(os.getcwd), protocol=2).ljust(info.length, b"\0")):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError) as error:
            read_tensor(ChunkReader(open_torch_dist(tmp_path / "c")), KEY)
        assert str(error.value) == (
            f"{file}: {KEY} [0:4, 0:6, 0:8] at byte 0 cannot be read: its bytes are no archive of a tensor: the file "
            "is damaged"
        )


def _name(hf: str) -> TensorName:
    names = tensors(read_model_shape(ROOT / "configs/models/tiny-r1"))
    return next(name for name in names if name.hf == hf)


@pytest.mark.parametrize(
    ("hf", "key", "place"),
    [
        # Tiny R1: 5 layers, 8 experts of 64 x 128, dense width 256, latent width of the queries 64.
        (
            "model.layers.3.mlp.experts.5.up_proj.weight",
            "decoder.layers.3.mlp.experts.experts.linear_fc1.weight",
            ((8, 128, 128), (5, 64, 0), (1, 64, 128)),
        ),
        (
            "model.layers.3.mlp.experts.5.up_proj.weight",
            "decoder.layers.3.mlp.experts.experts.5.linear_fc1.weight_v",
            ((64, 128), (0, 0), (64, 128)),
        ),
        (
            "model.layers.3.mlp.experts.5.down_proj.weight",
            "decoder.layers.3.mlp.experts.experts.5.linear_fc2.weight",
            ((128, 64), (0, 0), (128, 64)),
        ),
        (
            "model.layers.0.mlp.gate_proj.weight",
            "decoder.layers.0.mlp.linear_fc1.weight_w",
            ((256, 128), (0, 0), (256, 128)),
        ),
        (
            "model.layers.3.self_attn.q_a_layernorm.weight",
            "decoder.layers.3.self_attention.linear_q_up_proj.layer_norm_weight",
            ((64,), (0,), (64,)),
        ),
        (
            "model.layers.3.mlp.experts.5.up_proj.weight",
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            ((5, 8, 128, 128), (3, 5, 64, 0), (1, 1, 64, 128)),
        ),
    ],
)
def test_every_spelling_of_a_weight_is_found(
    hf: str, key: str, place: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
) -> None:
    shape, offset, sizes = place
    assert find_place(_name(hf), 5, {key}) == Place(key, shape, Box(offset, sizes))
    assert find_place(_name(hf), 5, {"another"}) is None


def test_the_bytes_of_a_chunk_lie_where_the_metadata_says(tmp_path: Path) -> None:
    write_torch_dist(tmp_path / "c", {KEY: (numbered(4, 6, 8), [[1, 2, 3, 4], [6], [8]])})
    chunk = open_torch_dist(tmp_path / "c").tensors[KEY].chunks[2]
    info = located(tmp_path / "c", KEY, (2, 0, 0))
    assert (chunk.extent.file, chunk.extent.offset, chunk.extent.length) == (
        info.relative_path,
        info.offset,
        info.length,
    )
