"""What a model may ask of a checkpoint, and how each refusal reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from r1hpc.checkpoint.boxes import Box
from r1hpc.checkpoint.compare import Request, problems_of, unread
from r1hpc.checkpoint.torch_dist import Chunk, Extent, StoredTensor

EMBEDDING = "embedding.word_embeddings.weight"
EXPERTS = "decoder.layers.1.mlp.experts.experts.linear_fc1.weight"
BIAS = "decoder.layers.1.mlp.router.expert_bias"
NORM = "decoder.final_layernorm.weight"


def test_a_box_that_two_chunks_fill_together_is_served() -> None:
    stored = _stored(NORM, (8,), [((0,), (4,)), ((4,), (4,))])
    assert _problems(_asked(NORM, (8,), (2,), (4,)), stored) == []


def test_a_missing_chunk_is_named_with_the_box_and_what_is_left_of_it() -> None:
    # Experts 0 and 1, gate and up [3, 2] each; up of expert 1 is missing, and the rank asks for expert 1.
    halves = [((0, 0, 0), (1, 3, 2)), ((0, 3, 0), (1, 3, 2)), ((1, 0, 0), (1, 3, 2))]
    (problem,) = _problems(_asked(EXPERTS, (2, 6, 2), (1, 0, 0), (1, 6, 2)), _stored(EXPERTS, (2, 6, 2), halves))
    assert problem == (
        f"{EXPERTS}[1:2, 0:6, 0:2]: the checkpoint holds 6 of its 12 elements; Megatron would leave the others as they"
        " were in memory: convert again"
    )


def test_a_missing_chunk_that_no_box_needs_is_no_problem() -> None:
    stored = _stored(EXPERTS, (2, 6, 2), [((0, 0, 0), (1, 6, 2))])
    assert _problems(_asked(EXPERTS, (2, 6, 2), (0, 0, 0), (1, 6, 2)), stored) == []


def test_chunks_that_overlap_are_refused() -> None:
    (problem,) = _problems(_asked(NORM, (8,), (0,), (8,)), _stored(NORM, (8,), [((0,), (5,)), ((4,), (4,))]))
    assert problem == (
        f"{NORM}[0:8]: the checkpoint's chunks hold 9 elements where there are 8, so two of them overlap: convert again"
    )


@pytest.mark.parametrize(("rows", "verb"), [(384, "pad with zeros"), (256, "cut")])
def test_another_vocabulary_is_refused_with_both_sizes(rows: int, verb: str) -> None:
    asked = _asked(EMBEDDING, (rows, 4), (0, 0), (rows, 4))
    (problem,) = _problems(asked, _stored(EMBEDDING, (320, 4), [((0, 0), (320, 4))]))
    assert problem == (
        f"{EMBEDDING}: the model has {rows} rows of vocabulary, the checkpoint 320; Megatron would {verb} without a"
        " word: build the model with exactly 320 rows (no padding to a multiple)"
    )


def test_another_shape_is_refused_with_both() -> None:
    (problem,) = _problems(_asked(NORM, (8,), (0,), (8,)), _stored(NORM, (6,), [((0,), (6,))]))
    assert problem.startswith(f"{NORM}: the model's shape is [8], the checkpoint's [6]; they must be equal")


def test_another_dtype_is_refused_once_for_all_tensors_and_converted_where_asked() -> None:
    keys = [f"decoder.layers.{layer}.input_layernorm.weight" for layer in range(5)]
    asked = [_asked(key, (8,), (0,), (8,), torch.float32) for key in keys]
    stored = {key: tensor for one in keys for key, tensor in _stored(one, (8,), [((0,), (8,))]).items()}
    (problem,) = problems_of(asked, stored, set(), cast=False)
    assert problem == (
        f"5 tensors ({', '.join(keys[:3])} and 2 more): float32 in the model, bfloat16 in the checkpoint; build the"
        " model with the checkpoint's dtype, or ask for the conversion (cast=True)"
    )
    assert problems_of(asked, stored, set(), cast=True) == []


def test_fp8_codes_are_never_converted_for_they_need_their_scales() -> None:
    stored = _stored(NORM, (8,), [((0,), (8,))], torch.float8_e4m3fn)
    (problem,) = problems_of([_asked(NORM, (8,), (0,), (8,))], stored, set(), cast=True)
    assert "bfloat16 in the model, float8_e4m3fn in the checkpoint" in problem


@pytest.mark.parametrize(
    ("model", "checkpoint", "blamed"),
    [(torch.float32, torch.bfloat16, "checkpoint"), (torch.bfloat16, torch.float32, "model")],
)
def test_a_router_bias_that_is_not_float32_is_refused_even_where_dtypes_may_differ(
    model: torch.dtype, checkpoint: torch.dtype, blamed: str
) -> None:
    stored = _stored(BIAS, (8,), [((0,), (8,))], checkpoint)
    (problem,) = problems_of([_asked(BIAS, (8,), (0,), (8,), model)], stored, {BIAS}, cast=True)
    assert problem == f"{BIAS}: is bfloat16 in the {blamed}; it must be float32, or tokens change experts"


def test_a_tensor_that_the_checkpoint_lacks_is_named() -> None:
    (problem,) = _problems(_asked(NORM, (8,), (0,), (8,)), {})
    assert problem.startswith(f"the checkpoint lacks 1 tensor ({NORM}): it is of another model")


def test_stored_weights_that_no_rank_reads_are_refused_but_for_those_of_training_and_mtp() -> None:
    ignored = ["mtp.layers.0.eh_proj.weight", "optimizer.state.exp_avg", "rng_state", "chained_1.optimizer.state.step"]
    assert unread({NORM}, [NORM, *ignored]) == []
    (problem,) = unread({NORM}, [NORM, BIAS, *ignored])
    assert problem.startswith(f"no rank of the model asks for 1 tensor ({BIAS}); every weight must be read")


def _asked(
    key: str,
    shape: tuple[int, ...],
    offset: tuple[int, ...],
    sizes: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
) -> Request:
    return Request(key, dtype, shape, Box(offset, sizes))


def _stored(
    key: str,
    shape: tuple[int, ...],
    boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, StoredTensor]:
    chunks = tuple(Chunk(Box(*box), Extent("__0_0.distcp", 0, 0)) for box in boxes)
    return {key: StoredTensor(key, shape, dtype, chunks)}


def _problems(request: Request, stored: dict[str, StoredTensor]) -> list[str]:
    return problems_of([request], stored, set(), cast=False)
