"""How fast block fp8 is: one CPU thread, and a GPU where there is one beside a plain copy on the device.

    python benchmarks/fp8.py [--experts 256]

GB/s on the CPU: of the input, fp8 or bf16; on the GPU: of everything read and written, as for the copy. Prints a line
a figure and, last, all of them as one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from r1hpc.checkpoint.fp8 import BLOCK, Dequantizer, quantize, quantize_into

GATE = (2048, 7168)
DOWN = (7168, 2048)
BAND_NUMBERS = 4 << 20


def main() -> int:
    """Measure the CPU, and the GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=256, help="matrices of one GPU launch")
    experts = parser.parse_args().experts
    torch.manual_seed(0)
    torch.set_num_threads(1)
    figures = {name: round(value, 3) for name, value in measured(experts).items()}
    for name, value in figures.items():
        print(f"{name:<28} {value}", flush=True)
    print(json.dumps(figures))
    return 0


def measured(experts: int) -> dict[str, float]:
    """Every figure of this host."""
    figures = cpu_figures()
    if torch.cuda.is_available():
        figures |= gpu_figures(experts)
    return figures


def cpu_figures() -> dict[str, float]:
    """One thread, matrices of R1's experts, buffers as a converter holds them."""
    figures = {}
    for label, shape in (("gate", GATE), ("down", DOWN)):
        weight = torch.randn(shape).bfloat16()
        gigabytes = weight.numel() / 1e9
        figures[f"cpu_{label}_dequantize_fp8_gb_s"] = gigabytes / best_seconds(in_bands(*quantize(weight)))
        figures[f"cpu_{label}_quantize_bf16_gb_s"] = 2 * gigabytes / best_seconds(partial(quantize, weight))
    return figures


def in_bands(codes: Tensor, scale: Tensor) -> Callable[[], None]:
    """Dequantizes a matrix as a converter does: a band of rows at a time, into one buffer."""
    rows, columns = BAND_NUMBERS // codes.shape[1] // BLOCK * BLOCK, codes.shape[1]
    dequantize, out = Dequantizer(), torch.empty(rows, columns, dtype=torch.bfloat16)

    def run() -> None:
        for row in range(0, len(codes), rows):
            band = codes[row : row + rows]
            dequantize(band, scale[row // BLOCK : -(-(row + rows) // BLOCK)], out=out[: len(band)])

    return run


def gpu_figures(experts: int) -> dict[str, float]:
    """A stack of experts in one launch, beside a copy on the device of as many bytes as are read and written."""
    weight = torch.randn(experts, *GATE, device="cuda").bfloat16()
    codes, scale = quantize(weight)
    out, copied, dequantize = torch.empty_like(weight), torch.empty_like(weight), Dequantizer()
    moved = 3 * weight.numel() / 1e9
    figures = {
        "gpu_copy_gb_s": 4 * weight.numel() / 1e9 / gpu_seconds(lambda: copied.copy_(weight)),
        # Into memory that is there, as a sync does; its check for what is not finite comes once for a whole payload.
        "gpu_quantize_gb_s": moved / gpu_seconds(lambda: quantize_into(weight, codes, scale)),
        "gpu_dequantize_gb_s": moved / gpu_seconds(lambda: dequantize(codes, scale, out=out)),
    }
    for direction in ("quantize", "dequantize"):
        figures[f"gpu_{direction}_vs_copy"] = figures[f"gpu_{direction}_gb_s"] / figures["gpu_copy_gb_s"]
    return figures


def best_seconds(run: Callable[[], object], repetitions: int = 7) -> float:
    """The shortest of several; the first, cold run is not counted."""
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def gpu_seconds(run: Callable[[], object]) -> float:
    """The shortest of several, from an idle GPU to an idle GPU; checks that wait for it included."""

    def finished() -> None:
        run()
        torch.cuda.synchronize()

    return best_seconds(finished, 20)


if __name__ == "__main__":
    raise SystemExit(main())
