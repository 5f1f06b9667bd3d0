"""The arithmetic of the recipe's run: every derived quantity, worked here by hand from the sizes in config.json.

G is 10^9. Where the recipe's own table rounds or leaves something out, the test says by how much the plan differs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.plan import Plan
from r1hpc.plan.memory import MemoryPart

G = 1e9
HIDDEN, LAYERS, MOE_LAYERS, VOCAB = 7168, 61, 58, 129_280
Q_A, Q_B = 1536 * HIDDEN, 128 * (128 + 64) * 1536
KV_A, KV_B = (512 + 64) * HIDDEN, 128 * (128 + 128) * 512
OUTPUT = HIDDEN * 128 * 128
ATTENTION = Q_A + Q_B + KV_A + KV_B + OUTPUT
ATTENTION_NORMS, LAYER_NORMS = 1536 + 512, 2 * HIDDEN
EXPERT = 3 * 2048 * HIDDEN
DENSE_MLP = 3 * 18_432 * HIDDEN
ROUTER = 256 * HIDDEN
EMBEDDING = VOCAB * HIDDEN


def named(parts: tuple[MemoryPart, ...], name: str) -> int:
    return next(part.bytes for part in parts if part.name == name)


def test_world_and_grids(r1_plan: Plan) -> None:
    grid = r1_plan.topology
    assert (r1_plan.num_nodes, r1_plan.world_size) == (16, 128)
    assert grid.dp == 128 // (8 * 4 * 4) == 1
    assert grid.edp == 128 // (1 * 32 * 4) == 1


def test_rank_order_and_where_groups_stand(r1_plan: Plan) -> None:
    grid = r1_plan.topology
    for rank in range(128):
        at = grid.coordinates(rank)
        assert rank == at.tp + 8 * at.cp + 32 * at.pp
    assert all(len({grid.node_of(rank) for rank in group}) == 1 for group in grid.groups("tp"))
    for group in grid.groups("cp"):
        assert {grid.gpu_of(rank) for rank in group} == {group[0] % 8}
        assert [grid.node_of(rank) for rank in group] == list(range(group[0] // 8, group[0] // 8 + 4))
    assert [[grid.node_of(rank) for rank in group[::8]] for group in grid.groups("ep")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
    ]
    assert [list(grid.stage_nodes(stage)) for stage in range(4)] == [[4 * i + j for j in range(4)] for i in range(4)]


def test_two_engines_cover_two_stages_each(r1_plan: Plan) -> None:
    grid = r1_plan.topology
    assert r1_plan.engine.num_engines == 2
    assert {grid.node_of(rank) for rank in r1_plan.engine_ranks(0)} == set(range(8))
    assert {grid.node_of(rank) for rank in r1_plan.engine_ranks(1)} == set(range(8, 16))
    assert list(r1_plan.engine_stages(0)) == [0, 1]
    assert list(r1_plan.engine_stages(1)) == [2, 3]


def test_layers_of_each_stage(r1_plan: Plan) -> None:
    assert [stage.num_layers for stage in r1_plan.stages] == [(61 - 13) // 3] * 3 + [13]
    assert [stage.num_moe_layers for stage in r1_plan.stages] == [13, 16, 16, 13]


def test_samples_and_steps(r1_plan: Plan) -> None:
    batches = r1_plan.batches
    assert batches.samples == 128 * 8 == 1024
    assert batches.samples_per_step == 1024 // 4 == 256
    assert batches.total_steps == 3000 * 4 == 12_000


def test_prompts_and_epochs(r1_plan: Plan) -> None:
    batches = r1_plan.batches
    assert batches.prompts_fetched == 256
    assert batches.rollouts_per_epoch == pytest.approx(17_400 / 256)
    assert round(17_400 / 256) == 68
    assert batches.epochs == pytest.approx(3000 / (17_400 / 256))
    assert round(3000 * 256 / 17_400) == 44


def test_client_concurrency_is_one_wave(r1_plan: Plan) -> None:
    assert r1_plan.batches.concurrency == 1024 * 2 == 2048
    assert r1_plan.batches.wave_requests == 256 * 8 == 2048


def test_micro_batch_token_cap(r1_plan: Plan) -> None:
    assert r1_plan.batches.micro_batch_tokens == 16_384 * 4 == 65_536


def test_parameters(r1_plan: Plan) -> None:
    parameters = r1_plan.parameters
    assert parameters.attention_per_layer == ATTENTION + ATTENTION_NORMS
    assert pytest.approx(187.1, abs=0.05) == ATTENTION / 1e6
    assert parameters.expert == EXPERT == pytest.approx(44.04e6, rel=1e-4)
    assert pytest.approx(11.27 * G, rel=1e-3) == 256 * EXPERT
    assert parameters.experts == MOE_LAYERS * 256 * EXPERT == pytest.approx(653.9 * G, rel=1e-4)
    by_hand = (
        LAYERS * (ATTENTION + ATTENTION_NORMS + LAYER_NORMS)
        + 3 * DENSE_MLP
        + MOE_LAYERS * (ROUTER + EXPERT + 256 * EXPERT)
        + 2 * EMBEDDING
        + HIDDEN
    )
    assert parameters.total == by_hand == 671_026_404_352
    assert parameters.router_biases == 58 * 256
    assert parameters.total + parameters.router_biases == 671_026_419_200


def test_prediction_layer(r1_plan: Plan) -> None:
    """The table's 11.5 B is the layer alone; the matrix that joins its two inputs adds 0.10 B."""
    layer = ATTENTION + ATTENTION_NORMS + LAYER_NORMS + ROUTER + 257 * EXPERT
    joining = HIDDEN * 2 * HIDDEN + 3 * HIDDEN
    assert layer == pytest.approx(11.5 * G, rel=1e-3)
    assert r1_plan.parameters.mtp == layer + joining == 11_610_067_968


def test_training_parameters_of_a_gpu(r1_plan: Plan) -> None:
    """q_a, kv_a, norms and routers are whole on every tensor-parallel rank; 256/32 = 8 experts a layer on each GPU."""
    layer = (Q_B + KV_B + OUTPUT) // 8 + Q_A + KV_A + ATTENTION_NORMS + LAYER_NORMS
    moe = ROUTER + EXPERT // 8 + 8 * EXPERT
    by_hand = [
        16 * layer + 3 * DENSE_MLP // 8 + 13 * moe + EMBEDDING // 8,
        16 * (layer + moe),
        16 * (layer + moe),
        13 * (layer + moe) + EMBEDDING // 8 + HIDDEN,
    ]
    assert [stage.parameters for stage in r1_plan.stages] == by_hand
    assert [round(count / G, 2) for count in by_hand] == [5.53, 6.34, 6.34, 5.27]


def test_training_bytes_of_a_gpu(r1_plan: Plan) -> None:
    parts = r1_plan.phase("train").stages[1].parts
    weights, gradients = named(parts, "weights"), named(parts, "gradients")
    assert weights == pytest.approx(12.7 * G, rel=2e-3)
    assert gradients == pytest.approx(25.4 * G, rel=2e-3)
    assert weights + gradients == 6 * 6_341_001_216 == pytest.approx(38 * G, rel=2e-3)


def test_host_bytes_of_a_stage_1_node(r1_plan: Plan) -> None:
    host = next(host for host in r1_plan.hosts if host.stages == (1,))
    assert host.nodes == "4-7"
    experts, dense = 5_637_144_576, 703_856_640
    # fp32 master, m and v: 12 B; dense parameters are sharded over the 4 context-parallel ranks.
    adam, gradients = named(host.use.parts, "host Adam"), named(host.avoided, "gradients of host Adam")
    assert adam == 8 * 12 * (experts + dense // 4) == pytest.approx(558 * G, rel=1e-3)
    # 8 GPUs, dense and expert parameters, 2 buffers each way, 4 Mi values of 4 B
    assert named(host.use.parts, "host Adam staging") == 8 * 2 * 4 * 2**22 * 4 == 2**30
    # The table's 744 GB have the gradients besides, 4 B: 186 GB that nothing holds here.
    assert gradients == 8 * 4 * (experts + dense // 4) == pytest.approx(186 * G, rel=1e-3)
    assert adam + gradients == pytest.approx(744 * G, rel=1e-3)
    copies = named(host.use.parts, "actor weights") + named(host.use.parts, "reference weights")
    assert copies == 2 * 8 * 2 * (experts + dense) == pytest.approx(203 * G, rel=1e-3)
    backup = named(host.avoided, "backup of weights and gradients")
    assert backup == 8 * 6 * (experts + dense) == pytest.approx(304 * G, rel=2e-3)


def test_host_bytes_of_the_usual_implementation(r1_plan: Plan) -> None:
    """The table's 84 to 100 GB for the engine's backup counts no weight twice; what lies on 8 GPUs is 137 GB.

    673 GB of fp8 weights / 8 nodes = 84 GB, but attention, dense MLP and shared experts are on several GPUs each.
    """
    host = next(host for host in r1_plan.hosts if host.stages == (1,))
    adam = named(host.use.parts, "host Adam") + named(host.avoided, "gradients of host Adam")
    copies = 203 * G
    saver = named(host.avoided, "backup of weights and gradients")
    assert pytest.approx(84, abs=0.5) == 673 / 8
    assert adam + copies + 84 * G == pytest.approx(1.03e12, rel=5e-3)
    assert adam + copies + saver + 100 * G == pytest.approx(1.35e12, rel=5e-3)
    assert named(host.avoided, "engine weights backup") == 8 * r1_plan.engine.weight_bytes
    assert adam + copies + saver + 8 * r1_plan.engine.weight_bytes == pytest.approx(1.4e12, rel=0.02)


def test_host_bytes_of_the_other_stages(r1_plan: Plan) -> None:
    first, last = r1_plan.hosts[0], r1_plan.hosts[-1]
    assert (first.stages, last.stages) == ((0,), (3,))
    # experts whole, dense / 4: 8 * 12 * (4.580 + 0.946/4) G and 8 * 12 * (4.580 + 0.688/4) G; the table has 16 for 12
    assert named(first.use.parts, "host Adam") == pytest.approx(96 * (4.580 + 0.946 / 4) * G, rel=1e-3)
    assert named(first.use.parts, "host Adam") == pytest.approx(617 * 12 / 16 * G, rel=1e-3)
    assert named(last.use.parts, "host Adam") == pytest.approx(96 * (4.580 + 0.688 / 4) * G, rel=1e-3)
    assert named(last.use.parts, "host Adam") == pytest.approx(608 * 12 / 16 * G, rel=1e-3)
    fullest, emptiest = 744, 608
    assert 1 - emptiest / fullest == pytest.approx(0.2, abs=0.03)


def test_rollout_weights_of_a_gpu(r1_plan: Plan) -> None:
    """The table halves less: its 1.4 GB of attention divides all of it by 8, but q_a and kv_a (0.92 GB) are whole.

    Embedding and head, which the table leaves open, are divided by the 8 GPUs of an attention rank: 0.46 GB.
    """
    weights = r1_plan.engine.weights
    assert named(weights, "experts") == pytest.approx(58 * 4 * EXPERT, rel=1e-3)
    assert named(weights, "experts") == pytest.approx(10.2 * G, rel=2e-3)
    assert pytest.approx(1.4 * G, rel=0.02) == 61 * ATTENTION / 8
    whole = 61 * (Q_A + KV_A)
    divided = 61 * (Q_B + KV_B + OUTPUT) / 8
    assert named(weights, "attention") == pytest.approx(whole + divided, rel=1e-3)
    assert named(weights, "dense MLP") == pytest.approx(3 * DENSE_MLP, rel=1e-3)
    assert named(weights, "dense MLP") == pytest.approx(1.2 * G, rel=0.01)
    assert named(weights, "shared experts") == pytest.approx(58 * EXPERT, rel=1e-3)
    assert named(weights, "shared experts") == pytest.approx(2.6 * G, rel=0.02)
    assert named(weights, "embedding, head") == 2 * 2 * EMBEDDING // 8
    assert r1_plan.engine.weight_bytes == pytest.approx(17 * G, rel=0.01)


def test_kv_bytes_per_token(r1_plan: Plan, plan_r1: Callable[..., Plan]) -> None:
    assert r1_plan.engine.kv_bytes_per_token == (512 + 64) * 61 * 2 == 70_272
    assert plan_r1("sglang.kv_cache_dtype=fp8_e4m3").engine.kv_bytes_per_token == 35_136


def test_kv_capacity(r1_plan: Plan) -> None:
    """The table says about 22 GB and 313 k tokens; the plan has 7 % more, from 84.9 GB usable and 17.1 GB of weights.

    (80 GiB * 0.98875 - 3.6 GB of context and groups) * 0.5 - 17.13 GB = 23.5 GB.
    """
    engine = r1_plan.engine
    by_hand = (80 * 2**30 * 79.1 / 80 - 3.6 * G) * 0.5 - engine.weight_bytes
    assert engine.kv_bytes == pytest.approx(by_hand, rel=1e-5)
    assert pytest.approx(313_000, rel=1e-3) == 22 * G / 70_272
    assert engine.kv_tokens_per_rank == pytest.approx(313_000, rel=0.08)
    assert engine.requests_per_rank == 1024 // 8 == 128
    assert engine.tokens_per_request == pytest.approx(2_400, rel=0.1)
    assert engine.retracts
    assert engine.kv_tokens_per_engine == pytest.approx(2.5e6, rel=0.08)


def test_kv_capacity_with_other_settings(r1_plan: Plan) -> None:
    """The table's 10.9 M and 25.5 M charge 10 GB for whole attention weights: (22 - 10) GB and (38 - 10) GB.

    With one GPU a rank, embedding and head are whole as well (3.7 instead of 0.46 GB) and so is the unquantised copy of
    kv_b (2.05 instead of 0.26 GB): 14.2 GB, not 10. That leaves 8.5 M and 23.3 M.
    """
    found = {other.settings: other.tokens_per_engine for other in r1_plan.alternatives}
    assert pytest.approx(10 * G, rel=2e-3) == 7 / 8 * 61 * ATTENTION
    assert pytest.approx(10.9e6, rel=5e-3) == 64 * 12 * G / 70_272
    assert pytest.approx(25.5e6, rel=2e-3) == 64 * 28 * G / 70_272
    assert pytest.approx(4.3e6, rel=0.01) == 8 * 38 * G / 70_272
    growth = 7 / 8 * (61 * (Q_B + KV_B + OUTPUT) + 2 * 2 * EMBEDDING + 61 * 2 * KV_B)
    assert growth == pytest.approx(14.2 * G, rel=5e-3)
    for fraction, tokens in ((0.5, 8.5e6), (0.7, 23.3e6)):
        static = (80 * 2**30 * 79.1 / 80 - 3.6 * G) * fraction
        by_hand = 64 * (static - r1_plan.engine.weight_bytes - growth) / 70_272
        assert found[f"sglang.dp_size 64, mem_fraction_static {fraction}"] == pytest.approx(by_hand, rel=2e-3)
        assert by_hand == pytest.approx(tokens, rel=5e-3)
    assert found["sglang.dp_size 8, mem_fraction_static 0.7"] == pytest.approx(4.3e6, rel=0.06)


def test_sync_volume(r1_plan: Plan) -> None:
    sync = r1_plan.sync
    assert sync.bf16_bytes == 2 * 671_026_404_352 + 4 * 58 * 256
    assert sync.bf16_bytes == pytest.approx(1.342e12, rel=1e-3)
    plain = 2 * EMBEDDING + MOE_LAYERS * ROUTER + LAYERS * (ATTENTION_NORMS + LAYER_NORMS) + HIDDEN
    assert sync.fp8_bytes == (671_026_404_352 - plain) + 2 * plain + 4 * 58 * 256
    assert sync.fp8_bytes == pytest.approx(673 * G, rel=1e-4)
    assert sync.scale_bytes == pytest.approx(4 * (671_026_404_352 - plain) / 128**2, rel=1e-4)
    assert sync.buckets == pytest.approx(1.342e12 / (512 * 2**20), rel=1e-3)
    assert sync.buckets == pytest.approx(2500, rel=1e-3)


def test_routed_sync_into_each_gpu(r1_plan: Plan) -> None:
    sync = r1_plan.sync
    assert sync.expert_bytes_per_gpu == 58 * 4 * EXPERT == pytest.approx(10.2 * G, rel=2e-3)
    kinds = (61 * ATTENTION, 58 * EXPERT, 3 * DENSE_MLP, 2 * 2 * EMBEDDING, 58 * 2 * ROUTER)
    assert [round(size / G, 1) for size in kinds] == [11.4, 2.6, 1.2, 3.7, 0.2]
    assert sync.dense_bytes_per_gpu == pytest.approx(sum(kinds), rel=1e-3)
    assert sync.dense_bytes_per_gpu == pytest.approx(19.1 * G, rel=2e-3)


def test_checkpoint_sizes(r1_plan: Plan) -> None:
    storage = r1_plan.storage
    assert storage.weight_bytes == pytest.approx(1.34e12, rel=2e-3)
    assert storage.commit_bytes == 14 * 671_026_404_352 + 4 * 58 * 256
    assert storage.commit_bytes == pytest.approx(9.4e12, rel=1e-3)


def test_memory_of_the_recipes_converter(r1_plan: Plan) -> None:
    """Of a rank that builds its part of the model; attention, router and shared expert on every expert rank."""
    conversion = r1_plan.storage.conversion
    assert conversion.layers == (7, 8, 8, 8, 8, 8, 8, 6)
    assert conversion.slices == 32
    attention = ATTENTION + ATTENTION_NORMS + LAYER_NORMS
    moe = attention + ROUTER + EXPERT + 64 * EXPERT
    biases = 4 * 256
    first = 2 * (3 * (attention + DENSE_MLP) + 4 * moe + EMBEDDING) + 4 * biases
    middle = 2 * 8 * moe + 8 * biases
    last = 2 * (6 * moe + EMBEDDING + HIDDEN) + 6 * biases
    with_mtp = last + 2 * (moe + 2 * HIDDEN * HIDDEN + 3 * HIDDEN + EMBEDDING) + biases
    assert conversion.recipe_rank_bytes == (first, *[middle] * 6, last)
    assert conversion.recipe_last_rank_bytes_with_mtp == with_mtp
    assert [round(size / G, 1) for size in (first, middle, last, with_mtp)] == [29.8, 48.8, 38.5, 46.6]


def test_hugging_face_tensors(r1_plan: Plan) -> None:
    tensors = r1_plan.storage.tensors
    attention, norms, experts = 5 + 2, 2, 3 * 256
    dense, moe = attention + norms + 3, attention + norms + 2 + 3 + experts
    assert tensors.main == 3 * dense + 58 * moe + 3 == 45_395
    assert tensors.mtp == moe + 6 == 788
    assert tensors.main + tensors.mtp == 46_183
    assert tensors.quantized == 3 * (5 + 3) + 59 * (5 + 3 + experts) == 45_808
    assert tensors.keys == 46_183 + 45_808 == 91_991


def test_hugging_face_bytes(r1_plan: Plan) -> None:
    """688 GB is the released size as remembered, 1.37 TB the cast one: both follow from the shapes."""
    disk = r1_plan.storage.disk
    assert named(disk, "Hugging Face checkpoint") == pytest.approx(688 * G, rel=1e-3)
    assert named(disk, "bf16 copy") == pytest.approx(1.37e12, rel=1e-3)
    # 2 B x (671.026 G of the main model + 11.610 G of the prediction layer), whose embedding and head are not repeated
    assert named(disk, "converted") == 2 * (671_026_404_352 + 11_610_067_968) + 4 * 59 * 256
    assert named(disk, "commits kept") == pytest.approx(2 * 9.4e12, rel=1e-3)
    # an old commit goes only when the new one is valid, so one more than the two kept must fit
    assert r1_plan.disk_bytes_needed == pytest.approx(688.6 * G + 1.369e12 + 1.3653e12 + 3 * 9.3944e12, rel=1e-4)
