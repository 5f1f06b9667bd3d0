"""Kernels of a step, by what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.kernel_groups import (
    ATTENTION,
    COMMUNICATION,
    COPIES,
    DENSE,
    ELEMENTWISE,
    GROUPED,
    MOVING,
    OTHER,
    Kernel,
    busy_ms,
    group_of,
    longest,
    milliseconds,
    read_trace,
)

NAMES = {
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_31_64x128x192_1x1x1_kernel0_0": ATTENTION,
    "void cudnn::fusion::compute_dot_do_o_specialized<true, __nv_bfloat16, float>(...)": ATTENTION,
    "void pytorch_flash::flash_fwd_kernel<...>": ATTENTION,
    "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::GemmUniversal"
    "<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int>>>>>": GROUPED,
    "void at::cuda::detail::prepare_grouped_gemm_data<cutlass::bfloat16_t>(...)": GROUPED,
    "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT": DENSE,
    "sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x128x32_warpgroupsize1x1x1_execute": DENSE,
    "void cublasLt::splitKreduce_kernel<32, 16, int, float>": DENSE,
    "void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long>": MOVING,
    "void at::native::_scatter_gather_elementwise_kernel<128, 8, at::native::_cuda_scatter_gather>": MOVING,
    "void at::native::vectorized_gather_kernel<16, long>": MOVING,
    "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<...>": MOVING,
    "void at::native::sbtopk::gatherTopK<float, unsigned int, 2, false>": MOVING,
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": ELEMENTWISE,
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>": ELEMENTWISE,
    "void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>": ELEMENTWISE,
    "triton_poi_fused_mul_silu_0": ELEMENTWISE,
    "Memcpy DtoD (Device -> Device)": ELEMENTWISE,
    "Memcpy DtoH (Device -> Pinned)": COPIES,
    "Memcpy HtoD (Pageable -> Device)": COPIES,
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": COMMUNICATION,
    "aten::mm": DENSE,
    "aten::_grouped_mm": GROUPED,
    "aten::index_select": MOVING,
    "aten::mul": ELEMENTWISE,
    "spin_kernel": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_told_apart_by_their_names(name: str) -> None:
    assert group_of(name) == NAMES[name]


def test_kernels_side_by_side_are_busy_once() -> None:
    kernels = [Kernel("nvjet_a", 0, 4000), Kernel("Memcpy DtoH", 1000, 3000), Kernel("nvjet_a", 6000, 7000)]
    assert milliseconds(kernels) == {DENSE: 5.0, COPIES: 2.0}
    assert busy_ms(kernels) == 5.0
    assert longest(kernels, 1) == [("nvjet_a", 5.0, 2)]


def test_a_trace_gives_what_ran_on_the_device_or_the_innermost_operators(tmp_path: Path) -> None:
    def event(kind: str, name: str, begin: int, duration: int) -> dict[str, object]:
        return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": duration}

    events = [
        event("cpu_op", "aten::linear", 0, 10),
        event("cpu_op", "aten::mm", 2, 5),
        event("cpu_op", "aten::mul", 10, 3),
        event("gpu_user_annotation", "Optimizer.step#HostAdam.step", 0, 100),
        event("kernel", "nvjet_a", 5, 20),
        {"ph": "M", "name": "process_name"},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    assert read_trace(tmp_path / "trace.json", device=True) == [Kernel("nvjet_a", 5, 25)]
    found = read_trace(tmp_path / "trace.json", device=False)
    assert found == [Kernel("aten::mm", 2, 7), Kernel("aten::mul", 10, 13)]
