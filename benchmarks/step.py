"""Speed of updates on one GPU: tokens/s, and TFLOP/s beside those of a plain matrix product in the same process.

    python -m benchmarks.step [--size 1.2b] [--no-profile]

64k tokens a step, packed into micro-batches: samples of 4,096 tokens, four a micro-batch, and samples of 32,768 tokens,
one a micro-batch; each with all layers recomputed, as in configs/r1.yaml, and without. Then where the time of one
micro-batch goes, by kernels. About 3 minutes on an H200 (a third of it imports and compilation); without a GPU the tiny
model and a few tokens, half a minute.

FLOPs are those of r1hpc.train.flops: a model's pass forward is two for each active parameter and token, and causal
attention; backward is two such passes. "Hardware" counts what is computed again, too: the layers where they are
recomputed, the logits always.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.kernel_groups import IDLE, Kernel, busy_ms, longest, milliseconds, read_trace
from benchmarks.random_trainer import Workload, on_gpu, parameters, synchronize, trainer, with_max_tokens, world
from r1hpc.train.actor import TrainActor
from r1hpc.train.flops import sequence_cost
from r1hpc.train.schedule import StepBatches, schedule
from r1hpc.train.step import StepInputs
from r1hpc.types import Sample

PRODUCT = 8192
LONGEST_KERNELS = 16


@dataclass(frozen=True)
class Case:
    """How an update is carried out."""

    name: str
    workload: Workload
    recompute: bool


@dataclass(frozen=True)
class Seconds:
    """Of the parts of an update with one optimizer step, each alone, and of the whole."""

    forward: float
    """The pass for log-probs, without gradients."""
    forward_backward: float
    """Gradients set to zero, accumulated, checked."""
    optimizer: float
    """Norm, clipping, host Adam, new weights on the device."""
    backup: float
    """The weights copied to the host."""
    update: float
    """All of it but the pass for log-probs, packing included."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations of an update."""

    model: float
    """Forward and backward, nothing twice."""
    hardware: float
    forward: float


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.2b" if on_gpu() else "tiny")
    parser.add_argument("--no-profile", action="store_true")
    options = parser.parse_args()
    begin = time.perf_counter()
    figures = measure(options.size, profiled=not options.no_profile)
    print(f"took {time.perf_counter() - begin:.0f} s, imports left out")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def measure(size: str, profiled: bool) -> dict[str, float]:
    """Figures by `<case>_<what>`; prints the tables."""
    cases = make_cases(size)
    with world() as scratch, trainer(cases[0].workload, scratch) as actor:
        peak = product_flops()
        figures = {"product_tflops": peak / 1e12}
        print(f"plain product: {peak / 1e12:.1f} TFLOP/s")
        figures["parameters_b"] = parameters(actor) / 1e9
        print(f"{parameters(actor) / 1e9:.3f} B parameters; seconds are of a step")
        print(
            "| case | tokens/s | forward + backward, tokens/s | model TFLOP/s | of the product | hardware, of it"
            " | forward only, of it | forward s | forward + backward s | optimizer s | backup s | update s | GB |"
        )
        print("|" + "---|" * 13)
        for case in cases:
            figures |= row(actor, case, peak)
        if profiled:
            figures |= profile_micro_batch(actor, cases[0], scratch)
    return figures


def make_cases(size: str) -> list[Case]:
    """64k tokens in samples of 4k and of 32k, or few on a CPU."""
    if on_gpu():
        packed, long = Workload(size, 16, 4096, 16384), Workload(size, 2, 32768, 32768)
    else:
        packed, long = Workload(size, 8, 64, 128), Workload(size, 2, 256, 256)
    return [
        Case("4k_recomputed", packed, True),
        Case("4k", packed, False),
        Case("32k_recomputed", long, True),
        Case("32k", long, False),
    ]


def row(actor: TrainActor, case: Case, peak: float) -> dict[str, float]:
    """Measure one case and print its row."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    seconds = time_parts(actor, case)
    work, tokens = work_of(case), case.workload.samples * case.workload.length
    gigabytes = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0
    figures = {
        "tokens_per_s": tokens / seconds.update,
        "forward_backward_tokens_per_s": tokens / seconds.forward_backward,
        "model_tflops": work.model / seconds.forward_backward / 1e12,
        "model_share": work.model / seconds.forward_backward / peak,
        "hardware_share": work.hardware / seconds.forward_backward / peak,
        "forward_share": work.forward / seconds.forward / peak,
        "forward_s": seconds.forward,
        "forward_backward_s": seconds.forward_backward,
        "optimizer_s": seconds.optimizer,
        "backup_s": seconds.backup,
        "update_s": seconds.update,
        "peak_gb": gigabytes,
    }
    cells = [f"{value:,.0f}" if value > 1000 else f"{value:.3f}" for value in figures.values()]
    print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    return {f"{case.name}_{name}": value for name, value in figures.items()}


def time_parts(actor: TrainActor, case: Case) -> Seconds:
    """The shorter of two runs of each, after a first of all of it."""
    samples, batches = prepare(actor, case)
    inputs = StepInputs(actor._advantages(samples))
    actor.update(samples, 0)
    return Seconds(
        forward=best(lambda: actor.passes.logprobs(batches.micro_batches)),
        forward_backward=best(lambda: actor.stepper.accumulate(batches.micro_batches, inputs)),
        optimizer=best(lambda: take_step(actor)),
        backup=best(actor._copy_to_host),
        update=best(lambda: actor.update(samples, 0)),
    )


def take_step(actor: TrainActor) -> None:
    """An optimizer step with the gradients that there are."""
    actor.optimizer.step(actor.learning_rate.value)
    actor.learning_rate.advance(actor.optimizer.num_steps)
    # The host's copy is not of this step: an update refuses to begin so.
    actor._steps_in_copy = actor.optimizer.num_steps


def prepare(actor: TrainActor, case: Case) -> tuple[Sequence[Sample], StepBatches]:
    """Let the actor train as the case has it; its samples, and their one step."""
    samples = case.workload.make_samples()
    with_max_tokens(actor, case.workload.max_tokens, samples)
    # Megatron looks at it in every forward pass: one model, and one optimizer state, does for all cases.
    actor.model.config.recompute_granularity = "full" if case.recompute else None
    (batches,) = schedule(samples, actor.config)
    return samples, batches


def work_of(case: Case) -> Work:
    """Of the case's samples."""
    shape, workload = case.workload.shape, case.workload
    forward = float(workload.samples * sequence_cost(shape)(workload.length))
    logits = 2.0 * shape.hidden_size * shape.vocab_size * workload.samples * workload.length
    again = logits + (forward - logits if case.recompute else 0.0)
    return Work(model=3 * forward, hardware=3 * forward + again, forward=forward)


def profile_micro_batch(actor: TrainActor, case: Case, scratch: Path) -> dict[str, float]:
    """Print where the time of a step of one micro-batch goes, and the kernels that take longest."""
    alone = replace(case.workload, samples=max(2, case.workload.max_tokens // case.workload.length))
    samples, batches = prepare(actor, replace(case, workload=alone))
    inputs = StepInputs(actor._advantages(samples))
    parts: dict[str, Callable[[], object]] = {
        "forward and backward": lambda: actor.stepper.accumulate(batches.micro_batches, inputs),
        "optimizer": lambda: take_step(actor),
    }
    plain_ms = {name: 1e3 * best(part) for name, part in parts.items()}
    kernels = {name: kernels_of(part, scratch) for name, part in parts.items()}
    columns = {name: milliseconds(found) for name, found in kernels.items()}
    for name, found in columns.items():
        found[IDLE] = max(0.0, plain_ms[name] - busy_ms(kernels[name]))  # type: ignore[assignment]
    tokens = alone.samples * alone.length
    print(
        f"\nA micro-batch of {tokens:,} tokens, all layers recomputed; ms, and shares of the time without a profiler."
    )
    print("| kernels | " + " | ".join(columns) + " |\n|---|---|---|")
    for group in sorted({group for found in columns.values() for group in found}, key=lambda group: group == IDLE):
        cells = [f"{found[group]:.2f} ({found[group] / plain_ms[name]:.1%})" for name, found in columns.items()]
        print(f"| {group} | {' | '.join(cells)} |")
    print(f"| time without a profiler | {' | '.join(f'{value:.2f}' for value in plain_ms.values())} |\n")
    for kernel, ms, count in longest(kernels["forward and backward"], LONGEST_KERNELS):
        print(f"{ms:8.2f} ms {count:5d} x {kernel[:120]}")
    return {
        f"profile_{name.split()[0]}_{group.split()[0].strip(',')}_ms": float(ms)
        for name, found in columns.items()
        for group, ms in found.items()
    }


def kernels_of(work: Callable[[], object], scratch: Path) -> list[Kernel]:
    """What ran on the device, or on a CPU in its place."""
    activities = [ProfilerActivity.CUDA if on_gpu() else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        work()
        synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json", dir=scratch) as file:
        profiler.export_chrome_trace(file.name)
        return read_trace(Path(file.name), device=on_gpu())


def product_flops() -> float:
    """FLOP/s of a square product in the dtype that is trained in."""
    size, dtype = (PRODUCT, torch.bfloat16) if on_gpu() else (512, torch.float32)
    left, right = (torch.randn(size, size, device="cuda" if on_gpu() else "cpu").to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(10):
            left @ right

    products()
    return 10 * 2 * size**3 / best(products, 3)


def best(work: Callable[[], object], repetitions: int = 2) -> float:
    """Seconds of the shortest run, from an idle device to an idle one."""
    seconds = []
    for _ in range(repetitions):
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    raise SystemExit(main())
