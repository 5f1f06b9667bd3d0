"""How the work is cut: every tensor once, every element once, shares of nearly equal bytes."""

from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.checkpoint.boxes import Box, coverage_problem, whole
from r1hpc.checkpoint.layout import Slices, chunks, cut_into_files, cut_into_slices, size_bytes
from r1hpc.checkpoint.names import TensorName, by_key, tensors
from r1hpc.checkpoint.shares import contiguous_shares, deal_largest_first
from r1hpc.plan.layers import split_layers
from r1hpc.plan.model_shape import ModelShape, model_shape, read_model_shape
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config

HOME = Path(__file__).resolve().parents[2]
R1 = tensors(read_model_shape(HOME / "configs" / "models" / "deepseek-r1"))
RECIPE = Slices(split_layers(61, 8, 7, 6), 4)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    """Models of a few layers, of any sizes."""
    layers = draw(st.integers(1, 5))
    heads = draw(st.integers(1, 5))
    overrides = {
        "num_hidden_layers": layers,
        "first_k_dense_replace": draw(st.integers(0, layers)),
        "n_routed_experts": 2 * draw(st.integers(1, 5)),
        "n_group": 1,
        "topk_group": 1,
        "hidden_size": draw(st.integers(1, 300)),
        "intermediate_size": draw(st.integers(1, 300)),
        "moe_intermediate_size": draw(st.integers(1, 300)),
        "vocab_size": draw(st.integers(8, 300)),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "q_lora_rank": draw(st.one_of(st.none(), st.integers(1, 200))),
        "kv_lora_rank": draw(st.integers(1, 200)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    values = tiny_config(TINY_R1, overrides, mtp=draw(st.booleans()), fp8=draw(st.booleans()))
    return model_shape(values, TINY_R1)


@st.composite
def slicings(draw: st.DrawFn, shape: ModelShape) -> Slices:
    """Any slices that a model can be cut into."""
    ends = sorted(draw(st.sets(st.integers(1, shape.num_layers), max_size=3)) | {shape.num_layers})
    pipeline = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    divisors = [number for number in range(1, 11) if shape.num_experts % number == 0]
    return Slices(pipeline, draw(st.sampled_from(divisors)), draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), pieces=st.integers(1, 9))
def test_the_chunks_of_a_key_fill_its_tensor_exactly_once(shape: ModelShape, pieces: int) -> None:
    for key, names in by_key(tensors(shape)).items():
        parts = [Box(chunk.offsets, chunk.sizes) for name in names for chunk in chunks(name, pieces)]
        assert coverage_problem(whole(names[0].global_shape), parts) is None, key


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), pieces=st.integers(1, 9))
def test_the_chunks_of_a_tensor_are_equal_and_as_many_as_divide_its_axis(shape: ModelShape, pieces: int) -> None:
    for name in tensors(shape):
        cut = chunks(name, pieces)
        assert len({chunk.sizes for chunk in cut}) == 1
        expected = 1 if name.split_axis is None else math.gcd(name.shape[name.split_axis], pieces)
        assert len(cut) == expected
        assert sum(math.prod(chunk.sizes) for chunk in cut) == math.prod(name.shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_tensor_is_in_one_slice_in_the_order_of_the_model(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    names = tensors(shape)
    slices = data.draw(slicings(shape))
    cut = cut_into_slices(names, slices)
    assert len(cut) == slices.count
    position = {name: number for number, name in enumerate(names)}
    for part in cut:
        numbers = [position[name] for name in part]
        assert numbers == sorted(numbers)
    assert sorted(position[name] for part in cut for name in part) == list(range(len(names)))


@settings(max_examples=60, deadline=None)
@given(shape=shapes(), limit=st.integers(1, 200_000))
def test_files_hold_every_tensor_once_and_are_closed_before_they_grow_too_large(shape: ModelShape, limit: int) -> None:
    names = tensors(shape)
    files = cut_into_files(names, limit)
    assert [name for file in files for name in file] == list(names)
    for file, following in zip(files, [*files[1:], None], strict=True):
        filled = _bytes(file)
        assert filled <= limit or len([name for name in file if size_bytes(name)]) == 1
        if following:
            assert filled + size_bytes(following[0]) > limit


sizes = st.lists(st.integers(0, 1000), max_size=40)


@given(sizes=sizes, count=st.integers(1, 12))
def test_contiguous_shares_keep_the_order_and_differ_by_one_item(sizes: list[int], count: int) -> None:
    shares = contiguous_shares(sizes, lambda size: size, count)
    assert len(shares) == count
    assert [size for share in shares for size in share] == sizes
    for share in shares:
        assert sum(share) <= sum(sizes) / count + max(sizes, default=0)


@given(sizes=sizes, loads=st.lists(st.integers(0, 3000), min_size=1, max_size=8))
def test_dealing_gives_every_item_once_and_levels_the_loads(sizes: list[int], loads: list[int]) -> None:
    dealt = deal_largest_first(sizes, lambda size: size, loads)
    assert sorted(size for share in dealt for size in share) == sorted(sizes)
    ends = [load + sum(share) for load, share in zip(loads, dealt, strict=True)]
    for end, share in zip(ends, dealt, strict=True):
        # Who got something had the least before the last of it.
        assert not share or end - share[-1] <= min(ends)
    assert dealt == deal_largest_first(sizes, lambda size: size, loads)


def test_the_recipes_slices_of_r1() -> None:
    assert RECIPE.pipeline == (7, 8, 8, 8, 8, 8, 8, 6)
    cut = cut_into_slices(R1, RECIPE)
    assert len(cut) == 32
    for stage in range(8):
        for expert_slice in range(4):
            part = cut[4 * stage + expert_slice]
            layers = {name.layer for name in part if name.expert is not None and name.layer is not None}
            first = sum(RECIPE.pipeline[:stage])
            last = first + RECIPE.pipeline[stage] - 1
            # The prediction layer is the last stage's too.
            expected = set(range(max(first, 3), last + 1)) | ({61} if stage == 7 else set())
            assert layers == expected
            assert {name.expert for name in part} - {None} == set(range(64 * expert_slice, 64 * expert_slice + 64))
    owner = {name.hf: number for number, part in enumerate(cut) for name in part}
    assert owner["model.embed_tokens.weight"] < 4
    for name in ("lm_head.weight", "model.norm.weight", "model.layers.61.eh_proj.weight"):
        assert owner[name] >= 28
    # What expert parallelism would hold four times is written once, by whoever has least.
    for stage in range(8):
        loads = [_bytes(part) for part in cut[4 * stage : 4 * stage + 4]]
        assert max(loads) < 1.1 * min(loads)
    # The prediction layer: attention, router, 256 routed and one shared expert, eh_proj, three norms.
    attention = 7168 * (1536 + 576 + 16384 + 2) + 1536 + 24576 * 1536 + 512 + 32768 * 512
    prediction = attention + 256 * 7168 + 257 * 3 * 2048 * 7168 + 2 * 7168 * 7168 + 3 * 7168
    assert sum(map(_bytes, cut)) == 2 * (671_026_404_352 + prediction) + 4 * 59 * 256


def test_slices_by_bytes_of_r1_are_equal_to_one_tensor() -> None:
    cut = cut_into_slices(R1, Slices(RECIPE.pipeline, 4, by_bytes=True))
    loads = [_bytes(part) for part in cut]
    assert [name for part in cut for name in part] == list(R1)
    assert max(loads) - min(loads) <= 2 * max(map(size_bytes, R1))


def test_a_file_of_r1_is_at_most_four_gib() -> None:
    for part in cut_into_slices(R1, RECIPE):
        assert max(map(_bytes, cut_into_files(part))) <= 4 << 30


def _bytes(names: list[TensorName]) -> int:
    return sum(map(size_bytes, names))
