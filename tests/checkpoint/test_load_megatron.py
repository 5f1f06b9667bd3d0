"""Checkpoints loaded by megatron-core itself, on gloo: what it computes, and what is refused before it starts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from transformers import DeepseekV3ForCausalLM

from r1hpc.checkpoint.names import tensors
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.model.parallel import Layout
from r1hpc.plan.model_shape import ModelShape, read_model_shape
from tests.checkpoint.megatron.run import Model, logits, save, try_to_load, wrong_weights
from tests.checkpoint.stored import edit_metadata, located

# More than the 64 positions that yarn starts from, and in whole chunks for TP2 x CP2 with sequence parallelism.
NUM_TOKENS = 104
EXPERTS = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
BIAS = "decoder.layers.1.mlp.router.expert_bias"
NORM = "decoder.layers.2.pre_mlp_layernorm.weight"


@dataclass(frozen=True)
class Source:
    """The bf16 Hugging Face checkpoint that everything here was made of."""

    directory: Path
    config: Mapping[str, Any]
    shape: ModelShape
    tensors: Mapping[str, Tensor]

    def fill(self, box: ShardedTensor) -> Tensor:
        """The values of a box of a Megatron tensor that is one Hugging Face tensor."""
        return self.tensors[self._places[box.key, tuple(box.global_offset)]]

    @property
    def _places(self) -> dict[tuple[str, tuple[int, ...]], str]:
        return {(name.key, name.offset): name.hf for name in tensors(self.shape) if name.copy_of is None}


@pytest.fixture(scope="module")
def source(forms: Path) -> Source:
    directory = forms / "bf16"
    values: dict[str, Tensor] = {}
    for file in directory.glob("*.safetensors"):
        values |= load_file(file)
    assert values
    config = json.loads((directory / "config.json").read_text())
    return Source(directory, config, read_model_shape(directory), values)


@pytest.fixture(scope="module")
def tokens(source: Source) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    drawn: list[int] = torch.randint(0, source.shape.vocab_size, (NUM_TOKENS,), generator=generator).tolist()
    return drawn


@pytest.fixture(scope="module")
def expected(source: Source, tokens: list[int]) -> Tensor:
    """[T, V] of transformers' model in float32 on the same weights."""
    model = DeepseekV3ForCausalLM.from_pretrained(source.directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found: Tensor = model(torch.tensor([tokens])).logits[0]
    return found


@pytest.fixture
def release(forms: Path, tmp_path: Path) -> Path:
    """A copy of the converted checkpoint, to be damaged."""
    shutil.copytree(forms / "torch_dist", tmp_path / "ref_load")
    return tmp_path / "ref_load/release"


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(tp=2, pp=2, ep=2, last_layers=1),
        Layout(tp=2, pp=2, cp=2, ep=4, last_layers=1),
    ],
    ids=["tp1", "tp2-pp2-ep2", "tp2-pp2-cp2-ep4"],
)
def test_a_converted_checkpoint_computes_what_transformers_computes(
    layout: Layout, forms: Path, source: Source, tokens: list[int], expected: Tensor, tmp_path: Path
) -> None:
    model = Model(source.config, source.shape, layout, tmp_path)
    found = logits(model, forms / "torch_dist", tokens)
    assert found.shape == (NUM_TOKENS, source.shape.vocab_size)
    assert expected.abs().max() > 1  # or any two models would agree
    assert (found - expected).abs().max() < 1e-4


def test_every_weight_is_the_sources_bit_for_bit_multi_token_prediction_included(
    forms: Path, source: Source, tmp_path: Path
) -> None:
    model = Model(source.config, source.shape, Layout(), tmp_path, torch.bfloat16, mtp=True)
    compared, wrong = wrong_weights(model, forms / "torch_dist", source.fill)
    assert compared == sum(name.copy_of is None for name in tensors(source.shape))
    assert wrong == []


def test_a_checkpoint_of_transformer_engines_spelling_without_extra_states_loads(
    source: Source, tokens: list[int], expected: Tensor, tmp_path: Path
) -> None:
    spelled = {name.key: name.te_key for name in tensors(source.shape) if name.te_key}
    # Two latent norms of each layer, MTP's among them, and the norm before the one dense MLP.
    assert len(spelled) == 2 * 4 + 1
    others = tmp_path / "others/iter_0000007"
    save(Model(source.config, source.shape, Layout(), tmp_path, torch.bfloat16, mtp=True), others, source.fill, spelled)
    (others.parent / "latest_checkpointed_iteration.txt").write_text("7")
    model = Model(source.config, source.shape, Layout(tp=2, pp=2, ep=2, last_layers=1), tmp_path)
    assert (logits(model, others.parent, tokens) - expected).abs().max() < 1e-4


def test_a_missing_chunk_is_refused_on_every_rank(release: Path, source: Source, tmp_path: Path) -> None:
    gate_of_expert_3 = (3, 0, 0)

    def drop(metadata: Metadata) -> None:
        tensor = _stored(metadata, EXPERTS)
        tensor.chunks = [chunk for chunk in tensor.chunks if tuple(chunk.offsets) != gate_of_expert_3]
        del metadata.storage_data[MetadataIndex(EXPERTS, gate_of_expert_3)]

    edit_metadata(release, drop)
    # Expert 3 is on the second of two ranks; the first has all of its own.
    problem = _refusal(Model(source.config, source.shape, Layout(tp=2, ep=2), tmp_path), release)
    assert problem == [
        f"{release}: {EXPERTS}[3:4, 0:160, 0:192]: the checkpoint holds 0 of its 30720 elements; Megatron would leave"
        " the others as they were in memory: convert again"
    ]


@pytest.mark.parametrize("rows", [256, 384])
def test_another_vocabulary_is_refused(rows: int, release: Path, source: Source, tmp_path: Path) -> None:
    config = {**source.config, "vocab_size": rows}
    problems = _refusal(Model(config, source.shape, Layout(tp=2), tmp_path), release)
    assert len(problems) == 2  # embedding and head
    assert all(f"the model has {rows} rows of vocabulary, the checkpoint 264" in problem for problem in problems)


def test_another_dtype_is_refused_unless_asked_for(release: Path, source: Source, tmp_path: Path) -> None:
    model = Model(source.config, source.shape, Layout(), tmp_path)
    (problem,) = _refusal(model, release, cast=False)
    assert "float32 in the model, bfloat16 in the checkpoint" in problem


def test_a_router_bias_in_bf16_is_refused(release: Path, source: Source, tmp_path: Path) -> None:
    def narrow(metadata: Metadata) -> None:
        _stored(metadata, BIAS).properties = TensorProperties(torch.bfloat16)

    edit_metadata(release, narrow)
    (problem,) = _refusal(Model(source.config, source.shape, Layout(), tmp_path), release)
    assert problem == f"{release}: {BIAS}: is bfloat16 in the checkpoint; it must be float32, or tokens change experts"


def test_a_model_with_fewer_layers_than_the_checkpoint_is_refused(
    release: Path, source: Source, tmp_path: Path
) -> None:
    config = {**source.config, "num_hidden_layers": 2}
    (problem,) = _refusal(Model(config, source.shape, Layout(), tmp_path), release)
    assert "no rank of the model asks for" in problem
    assert "decoder.layers.2." in problem


def test_a_checkpoint_without_a_tensor_is_refused(release: Path, source: Source, tmp_path: Path) -> None:
    edit_metadata(release, _forget(NORM))
    (problem,) = _refusal(Model(source.config, source.shape, Layout(), tmp_path), release)
    assert problem.startswith(f"{release}: the checkpoint lacks 1 tensor ({NORM})")


def test_a_file_that_ends_early_is_refused_by_name(release: Path, source: Source, tmp_path: Path) -> None:
    file = max(release.glob("__[0-9]*.distcp"))
    whole = file.stat().st_size
    with file.open("r+b") as opened:
        opened.truncate(whole // 2)
    (problem,) = _refusal(Model(source.config, source.shape, Layout(tp=2), tmp_path), release)
    assert problem == f"{file}: has {whole // 2:,} bytes, its last tensor ends at {whole:,}"


def test_an_archive_that_torch_cannot_read_is_an_error_that_names_the_checkpoint(
    release: Path, source: Source, tmp_path: Path
) -> None:
    place = located(release, EXPERTS, (0, 0, 0))
    with (release / place.relative_path).open("r+b") as opened:
        opened.seek(place.offset)
        opened.write(bytes(place.length))
    (error,) = try_to_load(Model(source.config, source.shape, Layout(), tmp_path), release, cast=True)
    assert isinstance(error, CheckpointError)
    assert str(error).startswith(f"{release}: cannot be read: ")


def test_a_directory_without_a_checkpoint_is_an_error_on_every_rank(source: Source, tmp_path: Path) -> None:
    errors = try_to_load(Model(source.config, source.shape, Layout(tp=2), tmp_path), tmp_path, cast=True)
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert f"{tmp_path}: is no torch_dist checkpoint" in str(errors[1])


def _refusal(model: Model, checkpoint: Path, cast: bool = True) -> list[str]:
    """The problems for which every rank refuses the checkpoint; the same on all."""
    errors = try_to_load(model, checkpoint, cast=cast)
    assert len(errors) == model.layout.model_size
    problems = []
    for error in errors:
        assert isinstance(error, CheckpointProblems), error
        problems.append(error.problems)
    assert all(found == problems[0] for found in problems)
    return problems[0]


def _stored(metadata: Metadata, key: str) -> TensorStorageMetadata:
    tensor = metadata.state_dict_metadata[key]
    assert isinstance(tensor, TensorStorageMetadata)
    return tensor


def _forget(key: str) -> Callable[[Metadata], None]:
    def forget(metadata: Metadata) -> None:
        del metadata.state_dict_metadata[key]
        for index in [index for index in metadata.storage_data if index.fqn == key]:
            del metadata.storage_data[index]

    return forget
