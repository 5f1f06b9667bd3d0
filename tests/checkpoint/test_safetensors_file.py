"""Headers of safetensors files: read as the library writes them, refused when they do not fit their file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from r1hpc.checkpoint.safetensors_file import header_bytes, read_header
from r1hpc.checkpoint.shard_writer import writing_shard
from r1hpc.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model-00001-of-00001.safetensors"
    save_file({"a.weight": torch.arange(6).float().view(2, 3), "b.weight": torch.ones(4).bfloat16()}, path)
    return path


def test_a_file_of_the_library_is_read(file: Path) -> None:
    header = read_header(file)
    raw = file.read_bytes()
    assert {entry.name: (entry.dtype, entry.shape) for entry in header.tensors} == {
        "a.weight": ("F32", (2, 3)),
        "b.weight": ("BF16", (4,)),
    }
    (entry,) = (entry for entry in header.tensors if entry.name == "a.weight")
    assert struct.unpack("<6f", raw[entry.begin : entry.end]) == (0, 1, 2, 3, 4, 5)
    assert header.size_bytes == len(raw)


def test_a_streamed_file_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    layout = [("bias", "F32", (3,)), ("weight", "BF16", (5, 2))]
    weight = torch.arange(10).bfloat16().view(5, 2)
    with writing_shard(path, layout) as writer:
        writer.append("bias", torch.tensor([1.0, 2.0, 3.0]))
        writer.append("weight", weight[:2])
        writer.append("weight", weight[2:])
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert torch.equal(opened.get_tensor("weight"), weight)
        assert opened.get_tensor("bias").tolist() == [1, 2, 3]
    assert list(writer.hashes) == ["bias", "weight"]
    assert path.stat().st_size == writer.size_bytes
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_lacks_a_payload_is_never_published(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    with pytest.raises(AssertionError, match="1 tensors were not written"), writing_shard(path, [("a", "F32", (2,))]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_cut_file_names_the_tensor_that_it_is_cut_in(file: Path) -> None:
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.truncate(size - 1)
    with pytest.raises(CheckpointError, match=rf"{size - 1} bytes, its header asks for {size}: .* within b.weight"):
        read_header(file)


def test_a_file_cut_within_its_header_is_refused(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.truncate(20)
    with pytest.raises(CheckpointError, match="cut short within its header"):
        read_header(file)


def test_a_longer_file_than_its_header_says_is_refused(file: Path) -> None:
    with open(file, "ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="its header accounts for"):
        read_header(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: cannot be read \(No such file"):
        read_header(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "takes 8 bytes, its header gives it 4"),
        ({"w": {"dtype": "F3", "shape": [2], "data_offsets": [0, 8]}}, "dtype F3"),
        ({"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "begins at byte"),
        ({"w": {"dtype": "F32"}}, "no safetensors file"),
        ([], "no safetensors file"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, value: object, words: str) -> None:
    raw = json.dumps(value).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    with pytest.raises(CheckpointError, match=words):
        read_header(path)


def test_payloads_begin_aligned() -> None:
    for length in range(1, 20):
        assert len(header_bytes([("x" * length, "F32", (1,))])) % 8 == 0
