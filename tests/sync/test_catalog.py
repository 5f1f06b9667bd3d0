"""What ranks hold becomes a plan, or one error that says all that is wrong; on every rank."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from r1hpc.checkpoint.boxes import Box, whole
from r1hpc.checkpoint.names import TensorName, by_key, tensors
from r1hpc.config.engines import SglangConfig
from r1hpc.plan.model_shape import ModelShape
from r1hpc.sync.buckets import pack, payload_sizes
from r1hpc.sync.catalog import Holding, plan_assemblies
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncError, SyncProblems, SyncTarget
from r1hpc.sync.routes import Routes, routed_ep_size, serving_ranks

SHAPE = ModelShape(
    hidden_size=256,
    num_layers=3,
    num_dense_layers=1,
    num_mtp_layers=1,
    num_heads=4,
    q_lora_rank=64,
    kv_lora_rank=64,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    intermediate_size=512,
    moe_intermediate_size=128,
    num_experts=8,
    num_experts_per_token=2,
    num_shared_experts=1,
    router_bias=True,
    vocab_size=1024,
    tied_embeddings=False,
    max_positions=4096,
    fp8_block=(128, 128),
)
NAMES = tensors(replace(SHAPE, num_mtp_layers=0))


def held(ranks: int, experts_cut: bool = True) -> list[list[Holding]]:
    """Experts cut among the ranks, all else on every rank."""
    found: list[list[Holding]] = [[] for _ in range(ranks)]
    for key, names in by_key(NAMES).items():
        shape = names[0].global_shape
        for rank in range(ranks):
            box = whole(shape)
            if names[0].expert is not None and experts_cut:
                each = shape[0] // ranks
                box = Box((rank * each, 0, 0), (each, *shape[1:]))
            dtype = torch.float32 if names[0].float32 else torch.bfloat16
            found[rank].append(Holding(rank, f"module.{key}", 0, key, shape, box, dtype))
    return found


def test_every_tensor_is_put_together_once_by_a_holder_and_the_work_is_even() -> None:
    assemblies = plan_assemblies(SHAPE, held(4))
    assert [assembly.name for assembly in assemblies] == list(NAMES)
    done: Counter[int] = Counter()
    for assembly in assemblies:
        (part,) = assembly.parts  # each rank that has any has all of it: nothing need be sent
        assert part.holding.rank == assembly.assembler
        done[assembly.assembler] += part.box.volume
        if assembly.name.expert is not None:
            assert assembly.assembler == assembly.name.expert // 2
    assert len(done) == 4
    assert max(done.values()) < 1.2 * min(done.values())


def test_halves_on_different_ranks_meet_at_one_of_them() -> None:
    catalogs = held(2)
    key = "output_layer.weight"
    for rank in range(2):
        place = next(i for i, holding in enumerate(catalogs[rank]) if holding.key == key)
        catalogs[rank][place] = replace(catalogs[rank][place], box=Box((512 * rank, 0), (512, 256)))
    head = next(a for a in plan_assemblies(SHAPE, catalogs) if a.name.hf == "lm_head.weight")
    assert [(part.holding.rank, part.box) for part in head.parts] == [
        (0, Box((0, 0), (512, 256))),
        (1, Box((512, 0), (512, 256))),
    ]
    assert [part.slices(head.name) for part in head.parts] == [
        (slice(0, 512), slice(0, 256)),
        (slice(512, 1024), slice(0, 256)),
    ]


Change = Callable[[list[Holding]], list[Holding]]


def without(key: str) -> Change:
    return lambda catalog: [holding for holding in catalog if holding.key != key]


def changed(of: str, **what: object) -> Change:
    return lambda catalog: [replace(h, **what) if h.key == of else h for h in catalog]  # type: ignore[arg-type]


EXPERTS = "decoder.layers.1.mlp.experts.experts.linear_fc2.weight"
NORM = "decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([without(NORM), without(NORM)], "model.norm.weight: no rank holds any of it (decoder.final_layernorm.weight)"),
        ([without(EXPERTS), lambda c: c], "model.layers.1.mlp.experts.3.down_proj.weight: no rank holds any of it"),
        ([changed(NORM, global_shape=(300,)), lambda c: c], "part of [300]; the model's configuration makes it [256]"),
        ([changed(NORM, box=Box((0,), (200,)))] * 2, "56 of 256 elements are missing (among them [200:256])"),
        ([changed(NORM, box=Box((0,), (200,))), lambda c: c], "the parts [0:200] and [0:256] overlap"),
        ([changed(NORM, dtype=torch.float32), lambda c: c], "its parts are torch.bfloat16 and torch.float32"),
        ([changed(NORM, key="mtp.norm")] * 2, "rank 1 holds mtp.norm, which no tensor of the model is made of"),
    ],
)
def test_a_catalog_that_is_not_the_models_is_refused(changes: Sequence[Change], said: str) -> None:
    catalogs = [change(catalog) for change, catalog in zip(changes, held(2), strict=True)]
    with pytest.raises(SyncProblems) as caught:
        plan_assemblies(SHAPE, catalogs)
    assert said in str(caught.value)


def expert(number: int) -> TensorName:
    return next(name for name in NAMES if name.expert == number)


@pytest.mark.parametrize(
    ("ranks", "ep_size", "number", "expected"),
    [
        ((4, 5, 6, 7), 1, 0, (4, 5, 6, 7)),
        ((4, 5, 6, 7), 4, 3, (5,)),
        ((7, 6, 5, 4), 4, 7, (4,)),
        ((4, 5, 6, 7), 2, 3, (4, 5)),  # each expert is cut between two ranks
        ((4, 5, 6), 2, 7, (4, 5, 6)),  # uneven: everybody
    ],
)
def test_experts_are_routed_as_sglang_places_them(
    ranks: tuple[int, ...], ep_size: int, number: int, expected: tuple[int, ...]
) -> None:
    target = SyncTarget("engine0", ranks, ep_size)
    assert tuple(serving_ranks(target, number, 8)) == expected
    assert Routes((target,), 8).to(expert(number)) == expected


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({"ep_size": 4}, 4),
        ({"ep_size": 4, "init_expert_location": "trivial"}, 4),
        ({"moe_a2a_backend": "deepep"}, 8),
        ({"ep_size": 4, "enable_eplb": True}, 1),
        ({"ep_size": 4, "ep_num_redundant_experts": 8}, 1),
        ({"ep_size": 4, "moe_dp_size": 2}, 1),
    ],
)
def test_routes_are_taken_only_where_the_place_of_experts_is_known(settings: dict[str, object], runs: int) -> None:
    assert routed_ep_size(SglangConfig(rollout_num_gpus_per_engine=8, **settings)) == runs  # type: ignore[arg-type]


def test_a_rank_beside_two_engine_ranks_is_refused() -> None:
    with pytest.raises(SyncError, match="each rank serves one"):
        Routes((SyncTarget("a", (0, 1)), SyncTarget("b", (1,))), 8)


def test_no_rank_is_given_or_puts_together_more_than_a_bucket() -> None:
    assemblies = plan_assemblies(SHAPE, held(4))
    routes = Routes((SyncTarget("engine0", (0, 1, 2, 3), ep_size=4),), 8)
    bound = 1 << 19
    buckets = pack(assemblies, SyncForm.FP8, routes.to, bound)
    seen: Counter[str] = Counter(i.assembly.name.hf for b in buckets for s in b.segments for i in s.items)
    assert seen == Counter(name.hf for name in NAMES)
    assert len(buckets) > 4
    for bucket in buckets:
        alone = {item.assembly.name.hf for segment in bucket.segments for item in segment.items}
        if alone & {"lm_head.weight", "model.embed_tokens.weight"}:
            continue  # 1024 x 256 bf16 = 512 KiB: exactly a bucket
        assert max(payload_sizes(bucket).values()) <= bound
        made: Counter[int] = Counter()
        for segment in bucket.segments:
            made[segment.assembler] += segment.size
        assert max(made.values()) <= bound


def test_experts_of_several_ranks_share_a_bucket() -> None:
    """Bounded for each rank, not in sum: else an engine of 64 ranks would be given 64 times as many buckets."""
    assemblies = plan_assemblies(SHAPE, held(4))
    routes = Routes((SyncTarget("engine0", (0, 1, 2, 3), ep_size=4),), 8)
    everybody = Routes((SyncTarget("engine0", (0, 1, 2, 3)),), 8)
    bound = 1 << 18
    assert len(pack(assemblies, SyncForm.FP8, routes.to, bound)) < len(
        pack(assemblies, SyncForm.FP8, everybody.to, bound)
    )
