"""Cast and convert: the bytes they move, how they are divided, how long they take, the memory of their tasks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from r1hpc.checkpoint.layout import Slices, cut_into_slices, size_bytes
from r1hpc.checkpoint.names import tensors
from r1hpc.plan import ModelShape, Plan, render_plan
from r1hpc.plan.array_stages import StageTime

PlanWith = Callable[..., Plan]
Refusal = Callable[..., str]
G = 1e9
# Source: 1 B a quantized weight, 4 B a scale of 16,384 of them, 2 B the rest. Copy: 2 B each of the 682.6 G weights and
# of the prediction layer's own embedding and head (2 * 129,280 * 7,168). Result: the copy without those two.
SOURCE, COPY, RESULT = 688.6 * G, 1369.0 * G, 1365.27 * G


def cast_of(plan: Plan) -> StageTime:
    stage = plan.times.stages.cast
    assert stage is not None
    return stage


def convert_of(plan: Plan) -> StageTime:
    stage = plan.times.stages.convert
    assert stage is not None
    return stage


def recheck_of(plan: Plan) -> StageTime:
    stage = plan.times.stages.recheck
    assert stage is not None
    return stage


def test_the_bytes_are_those_of_the_tensors(r1_plan: Plan, r1_shape: ModelShape) -> None:
    names = tensors(r1_shape)
    assert len(names) == 46_183
    assert r1_plan.storage.converted_bytes == sum(map(size_bytes, names))
    copies = [name for name in names if name.copy_of]
    assert [name.shape for name in copies] == [(129_280, 7168)] * 2
    assert r1_plan.storage.convert_read_bytes == sum(map(size_bytes, names)) + 2 * 2 * 129_280 * 7168


def test_slices_hold_what_the_conversion_puts_into_them(r1_plan: Plan, r1_shape: ModelShape) -> None:
    """To within one tensor: the head, 1.85 GB, is the largest that is dealt."""
    cut = cut_into_slices(tensors(r1_shape), Slices((7, *[8] * 6, 6), expert=4))
    real = [sum(map(size_bytes, names)) for names in cut]
    planned = [size for size in r1_plan.storage.conversion.slice_bytes for _ in range(4)]
    assert len(real) == len(planned) == 32
    assert all(abs(a - b) < 2 * 129_280 * 7168 for a, b in zip(real, planned, strict=True))
    # 4 MoE layers and 3 dense ones; 8 MoE layers; 6, the prediction layer and the head
    assert [round(size / G, 1) for size in planned[::4]] == [24.4, *[46.0] * 6, 40.8]


def test_slices_of_equal_bytes(plan_r1: PlanWith) -> None:
    slices = plan_r1("convert.balance=bytes").storage.conversion.slice_bytes
    assert slices == pytest.approx([RESULT / 32] * 8, rel=1e-4)


def test_r1_is_bound_by_a_file_system_of_20_gb_s(r1_plan: Plan) -> None:
    cast, convert, recheck = cast_of(r1_plan), convert_of(r1_plan), recheck_of(r1_plan)
    assert (cast.read_bytes, cast.written_bytes) == pytest.approx((SOURCE, COPY), rel=1e-4)
    assert (convert.read_bytes, convert.written_bytes) == pytest.approx((COPY, RESULT), rel=1e-4)
    # 16 tasks * 4 workers; 4 tasks * 8 slices each, a worker a slice; one task of those 8 publishes
    assert (cast.workers, convert.workers, recheck.workers) == (64, 32, 8)
    assert cast.seconds == pytest.approx((SOURCE + COPY) / 20e9, rel=1e-4) == pytest.approx(103, abs=0.5)
    assert convert.seconds == pytest.approx((COPY + RESULT) / 20e9, rel=1e-4) == pytest.approx(137, abs=0.5)
    assert recheck.seconds == pytest.approx(RESULT / 20e9, rel=1e-4) == pytest.approx(68, abs=0.5)
    assert {cast.bound, convert.bound, recheck.bound} == {"file system"}
    assert r1_plan.times.cast_s == cast.seconds
    assert r1_plan.times.convert_s == convert.seconds + recheck.seconds


def test_few_workers_bind_before_a_fast_file_system(plan_r1: PlanWith) -> None:
    plan = plan_r1("run.file_system_gbps=200", "cast.num_tasks=2", "convert.workers=3", "convert.max_parallel=2")
    cast, convert, recheck = cast_of(plan), convert_of(plan), recheck_of(plan)
    # 1.5 GB/s a worker that reads and writes, 5 GB/s one that reads again
    assert cast.seconds == pytest.approx((SOURCE + COPY) / (2 * 4 * 1.5e9), rel=1e-4)
    assert convert.seconds == pytest.approx((COPY + RESULT) / (2 * 3 * 1.5e9), rel=1e-4)
    assert recheck.seconds == pytest.approx(RESULT / (3 * 5e9), rel=1e-4)
    assert {cast.bound, convert.bound, recheck.bound} == {"workers"}
    assert cast.file_system_s == pytest.approx((SOURCE + COPY) / 200e9, rel=1e-4)
    assert "bound by its 8 workers; the file system would allow 10 s" in " ".join(render_plan(plan).split())


def test_without_a_bf16_copy_the_conversion_reads_fp8(plan_r1: PlanWith) -> None:
    plan = plan_r1("ckpt.bf16_checkpoint=null", "convert.recheck=false")
    assert plan.times.stages.cast is None
    assert plan.times.stages.recheck is None
    assert plan.times.cast_s == 0
    assert plan.times.convert_s == pytest.approx((SOURCE + RESULT) / 20e9, rel=1e-4)
    assert all(part.name != "bf16 copy" for part in plan.storage.disk)


def test_the_story_tells_what_is_moved_and_what_binds(r1_plan: Plan) -> None:
    story = " ".join(render_plan(r1_plan).split())
    assert "cast 1.71 min for 689 GB in, 1.37 TB out, bound by run.file_system_gbps; 64 workers could in 21 s" in story
    assert "convert 2.28 min for 1.37 TB in, 1.37 TB out" in story
    assert "68 s more to read it again" in story
    assert "slices 32 of 24.4 GB to 46.0 GB on disk; in memory a worker takes 400 MB" in story


def test_tasks_with_too_little_memory_for_their_workers(plan_r1: PlanWith, refusal: Refusal) -> None:
    text = refusal(plan_r1, "cast.memory_gib=2", "convert.memory_gib=3")
    # 2 GiB = 2.147 GB, 3 GiB = 3.221 GB
    assert "cast: 0.6 GB + 4 workers * 0.4 GB = 2.2 GB a task, more than memory_gib 2 = 2.1 GB; raise it, or" in text
    assert "convert: 0.6 GB + 8 workers * 0.4 GB = 3.8 GB a task, more than memory_gib 3 = 3.2 GB" in text
    assert plan_r1("cast.memory_gib=2.1", "convert.memory_gib=3.6").times.convert_s > 0


def test_a_stage_that_does_not_run_needs_no_memory(plan_r1: PlanWith) -> None:
    assert plan_r1("ckpt.bf16_checkpoint=null", "cast.memory_gib=0.1").times.cast_s == 0
