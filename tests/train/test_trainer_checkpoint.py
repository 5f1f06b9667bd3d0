"""A trainer's checkpoint: saved at one layout, loaded at another, bit for bit; and read by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import xxhash
from megatron.core import dist_checkpointing
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from r1hpc.checkpoint.chunk_reader import ChunkReader, read_tensor
from r1hpc.checkpoint.findings import Scope
from r1hpc.checkpoint.inspect import contents
from r1hpc.checkpoint.names import by_key, tensors
from r1hpc.checkpoint.torch_dist import open_torch_dist
from r1hpc.checkpoint.verify import verify
from r1hpc.model.build import sharded_state
from r1hpc.model.parallel import Layout
from r1hpc.train.checkpoint.load import LoadedTrainer, load_reference, load_trainer
from tests.train.checkpointed import (
    DIGEST,
    SCHEDULE,
    Trainer,
    World,
    global_tensor,
    quiet,
    shape,
    states_of_weights,
)

SAVED = {
    "tp2-pp2-ep2": World(4, Layout(tp=2, pp=2, ep=2)),
    "ep2-dp4": World(4, Layout(ep=2)),
    "tp2-cp2-bf16": World(4, Layout(tp=2, cp=2, ep=4), torch.bfloat16),
}
LOADED = {
    "one-rank": World(),
    "pp4": World(4, Layout(pp=4)),
    "ep4-dp4": World(4, Layout(ep=4)),
    "tp2-pp2-uneven": World(4, Layout(tp=2, pp=2, ep=2, last_layers=1)),
    "dp3": World(3, Layout()),
}


@pytest.fixture(scope="module", params=SAVED, ids=list(SAVED))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    world = SAVED[request.param]
    base = tmp_path_factory.mktemp(request.param)
    world.run(base, lambda trainer: trainer.save(base / "iter_0000007", file_bytes=1 << 20))
    return world, base / "iter_0000007"


@pytest.mark.parametrize("layout", LOADED, ids=list(LOADED))
def test_weights_masters_and_moments_come_back_bit_for_bit_at_any_layout(
    saved: tuple[World, Path], layout: str, tmp_path: Path
) -> None:
    world, directory = saved
    other = World(LOADED[layout].ranks, LOADED[layout].layout, world.dtype)

    def work(trainer: Trainer) -> tuple[list[str], int, LoadedTrainer]:
        loaded = load_trainer(directory, trainer.held, trainer.optimizer, 1, quiet)
        return trainer.wrong(), trainer.optimizer.num_steps, loaded

    for wrong, steps, loaded in other.run(tmp_path, work):
        assert wrong == []
        assert steps == loaded.state.optimizer_steps == 37
        assert loaded.state.iteration == 7
        assert loaded.state.schedule == SCHEDULE
        assert loaded.state.config_digest == DIGEST
        if layout == "tp2-pp2-uneven" and world.layout.pp == 2:
            # The same groups, with other layers: each rank has the place that it had.
            assert loaded.notices == ()
        else:
            (notice,) = loaded.notices
            assert f"this run has TP{other.layout.tp} PP{other.layout.pp}" in notice


def test_every_tensor_is_stored_whole_and_once(saved: tuple[World, Path]) -> None:
    world, directory = saved
    checkpoint = open_torch_dist(directory)
    reader = ChunkReader(checkpoint)
    names = by_key(tensors(shape()))
    states = ("fp32_param", "exp_avg", "exp_avg_sq")
    biases = {key for key, parts in names.items() if parts[0].float32}
    assert len(biases) == 3
    trained = {f"optimizer.state.{state}.{key}" for key in names.keys() - biases for state in states}
    assert checkpoint.tensors.keys() == names.keys() | trained
    for key, parts in names.items():
        dtype = torch.float32 if key in biases else world.dtype
        weights = global_tensor(key, parts[0].global_shape, dtype)
        assert torch.equal(read_tensor(reader, key), weights), key
        if key not in biases:
            for state, values in zip(states, states_of_weights(weights), strict=True):
                assert torch.equal(read_tensor(reader, f"optimizer.state.{state}.{key}"), values), (state, key)


def test_no_file_grows_beyond_its_bound_but_for_a_single_box(saved: tuple[World, Path]) -> None:
    _, directory = saved
    chunks = [chunk for tensor in open_torch_dist(directory).tensors.values() for chunk in tensor.chunks]
    files = list(directory.glob("__[0-9]*.distcp"))
    assert len(files) > 4
    for file in files:
        inside = [chunk for chunk in chunks if chunk.extent.file == file.name]
        assert inside
        assert file.stat().st_size == sum(chunk.extent.length for chunk in inside)
        assert len(inside) == 1 or file.stat().st_size <= 1 << 20


def test_verify_and_inspect_know_it(saved: tuple[World, Path]) -> None:
    _, directory = saved
    findings = verify(directory, scope=Scope(hashes=True, values=False), workers=1, say=quiet)
    assert findings.problems == []
    assert any(line.startswith("hashes: ") for line in findings.checked)
    count = sum(torch.Size(parts[0].global_shape).numel() for parts in by_key(tensors(shape())).values())
    assert contents(directory).num_parameters == count


def test_a_flipped_bit_is_found_by_its_hash(tmp_path: Path) -> None:
    World().run(tmp_path, lambda trainer: trainer.save(tmp_path / "saved"))
    file = tmp_path / "saved/__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    findings = verify(tmp_path / "saved", scope=Scope(hashes=True, values=False), workers=1, say=quiet)
    assert len(findings.problems) == 1
    assert "__0_0.distcp" in findings.problems[0]


def test_megatron_itself_reads_the_weights(saved: tuple[World, Path], tmp_path: Path) -> None:
    world, directory = saved

    def work(trainer: Trainer) -> list[str]:
        state = dist_checkpointing.load(sharded_state(trainer.model), str(directory))
        assert (state.pop("iteration"), state.pop("checkpoint_version")) == (7, 3.0)
        del state["content_metadata"]
        with torch.no_grad():
            trainer.model.load_state_dict(state)
        return [problem for problem in trainer.wrong() if " " not in problem]

    assert World(2, Layout(tp=2), world.dtype).run(tmp_path, work) == [[], []]


def test_torch_itself_reads_the_weights(saved: tuple[World, Path]) -> None:
    world, directory = saved
    key = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
    sizes = by_key(tensors(shape()))[key][0].global_shape
    state = {key: torch.full(sizes, float("nan"), dtype=world.dtype)}
    dcp_load(state, storage_reader=FileSystemReader(directory), no_dist=True)
    assert torch.equal(state[key], global_tensor(key, sizes, world.dtype))


def test_the_reference_is_read_from_it_without_the_optimizer(saved: tuple[World, Path], tmp_path: Path) -> None:
    world, directory = saved

    def work(trainer: Trainer) -> tuple[list[str], bool]:
        load_reference(directory, trainer.model, shape())
        moments = any(bool(shard.exp_avg.any()) for shard in trainer.optimizer.shards())
        return [problem for problem in trainer.wrong() if " " not in problem], moments

    assert World(2, Layout(pp=2), world.dtype).run(tmp_path, work) == [([], False)] * 2


def test_what_a_commit_needs_is_said(tmp_path: Path) -> None:
    world = World(2, Layout(tp=2, ep=2))

    def work(trainer: Trainer) -> tuple[str, int, Path]:
        trainer.fill()
        done = trainer.begin(tmp_path / "run/checkpoints/iter_0000007").finish()
        return done.manifest_xxh3, done.size_bytes, done.directory

    first, second = world.run(tmp_path, work)
    assert first == second
    hexdigest, size, directory = first
    manifest = (directory / "manifest.json").read_bytes()
    assert xxhash.xxh3_64_hexdigest(manifest) == hexdigest
    assert size == sum(file.stat().st_size for file in directory.iterdir())
    named = json.loads(manifest)["files"]
    assert named.keys() | {"manifest.json"} == {file.name for file in directory.iterdir()}
    assert {name: record["size"] for name, record in named.items()} == {
        file.name: file.stat().st_size for file in directory.iterdir() if file.name != "manifest.json"
    }
