"""How fast cast and conversion are: beside a plain copy of the same bytes, and beside the usual way.

    python benchmarks/convert.py [--gigabytes 4] [--workers 1 2] [--rounds 5] [--no-classic] [--cold]
    python benchmarks/convert.py --copy-only DIR [--gigabytes 4] [--workers 1 2 4]

The first makes a model with R1's matrices (experts 2048 x 7168, attention, dense MLP) and few of its experts, and does
each step in each round, in another order every time, in a process of its own. A step and the copy that it is compared
with read as many bytes, write as many, have as many processes and fsync every file: a copy beside an fp8 step reads the
fp8 files and writes as many bytes as the bf16 ones have. `X_vs_copy` is the median over the rounds of seconds of the
copy / seconds of X, `X_vs_copy_best` compares the fastest rounds. The seconds of a conversion include reading all of it
again; those of imports are nobody's. Sources are in the page cache, or with --cold not. The last line is a JSON object;
figures of more than the first number of workers end in `_w2`. The usual way has one process, and is compared with the
conversion by the first number.

The second tells what to put into run.file_system_gbps; run it on several hosts at once and add up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
R1_SIZES = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "vocab_size": 4096,
}
"""R1 but for the layers, the experts and the vocabulary (129,280)."""
WITHOUT_EXPERTS_BYTES, EXPERT_BYTES = 1.747e9, 2 * 3 * 2048 * 7168
CLASSIC_FREE_BYTES = 14e9
"""What the usual way needs for 4.6 GB of weights, and some more: on a shared machine it is left out before it swaps."""
STEP_TIMEOUT_S = 600
Figures = dict[str, float]
Command = list[str]


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bf16 weights at least (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/r1hpc-bench"), help="place for four times as much")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="processes on each side")
    parser.add_argument("--no-classic", dest="classic", action="store_false", help="leave the usual way out")
    parser.add_argument("--cold", action="store_true", help="evict the sources from the page cache before each step")
    parser.add_argument("--copy-only", type=Path, metavar="DIR", help="measure the file system of DIR alone")
    options = parser.parse_args()
    if options.copy_only:
        return speed_of(options.copy_only, options.gigabytes, options.workers)
    options.work.mkdir(parents=True, exist_ok=True)
    fp8 = make_model(options.work, options.gigabytes)
    bf16, out = options.work / "bf16", options.work / "out"
    _last_line(step("cast", fp8, bf16))
    figures: Figures = {"weights_gb": weights_bytes(bf16) / 1e9, "rounds": options.rounds}
    for index, workers in enumerate(options.workers):
        steps = compared_steps(fp8, bf16, out, workers, options.cold)
        if options.classic and not index:
            steps |= classic_step(bf16, out)
        found = measured_rounds(steps, options.rounds, out)
        moved = {"fp8": weights_bytes(fp8) + weights_bytes(bf16), "bf16": 2 * weights_bytes(bf16)}
        figures |= {name + (f"_w{workers}" if index else ""): value for name, value in ratios(found, moved).items()}
    shutil.rmtree(bf16)
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


def make_model(work: Path, gigabytes: float) -> Path:
    """A block-fp8 checkpoint with so many bytes of bf16 weights, made once; it stays for the next time."""
    groups = R1_SIZES["n_group"]
    experts = max(2, -(-int(gigabytes * 1e9 - WITHOUT_EXPERTS_BYTES) // (EXPERT_BYTES * groups))) * groups
    target = work / f"fp8-{experts}-experts"
    if not target.exists():
        sizes = [f"{key}={value}" for key, value in {**R1_SIZES, "n_routed_experts": experts}.items()]
        command = [
            sys.executable,
            "-m",
            "r1hpc.rehearsal.tiny_model",
            str(target),
            "--no-mtp",
            "--shards",
            "12",
            "--set",
            *sizes,
        ]
        subprocess.run(command, cwd=HOME, check=True)
    return target


def compared_steps(fp8: Path, bf16: Path, out: Path, workers: int, cold: bool) -> dict[str, Command]:
    """What every round does."""
    options = ["--workers", str(workers), *(["--cold"] if cold else [])]
    return {
        "copy_fp8": step("copy", fp8, out, *options, "--written-bytes", str(weights_bytes(bf16))),
        "copy_bf16": step("copy", bf16, out, *options),
        "cp_bf16": step("cp", bf16, out, *options),
        "cast": step("cast", fp8, out, *options),
        "convert": step("convert", bf16, out, *options),
        "convert_fp8": step("convert", fp8, out, *options),
    }


def step(kind: str, source: Path, target: Path, *options: str) -> Command:
    """The command of one step."""
    return [sys.executable, "-m", "benchmarks.convert_step", kind, str(source), str(target), *options]


def classic_step(bf16: Path, out: Path) -> dict[str, Command]:
    """The usual way, where there is memory for it."""
    free = _available_bytes()
    if free < CLASSIC_FREE_BYTES:
        print(f"the usual way is left out: {free / 1e9:.1f} GB are available, it takes {CLASSIC_FREE_BYTES / 1e9:.0f}")
        return {}
    return {"classic": [sys.executable, "-W", "ignore", "-m", "benchmarks.classic_convert", str(bf16), str(out)]}


def measured_rounds(steps: dict[str, Command], rounds: int, out: Path) -> dict[str, list[Figures]]:
    """The figures of every step in every round; steps write to `out`."""
    found: dict[str, list[Figures]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in random.Random(number).sample(list(steps), len(steps)):
            os.sync()  # what others have written is not to be waited for by this one
            figures = _last_line(steps[name])
            found[name].append(figures)
            print(f"  {name:<12}" + "".join(f" {key} {value:8.2f}" for key, value in figures.items()), flush=True)
    shutil.rmtree(out, ignore_errors=True)
    return found


def ratios(found: dict[str, list[Figures]], moved: Mapping[str, int]) -> Figures:
    """The figures of one number of workers: medians over the rounds. moved: bytes read and written, by source."""

    def seconds(name: str, without: str | None = None) -> list[float]:
        return [figures["seconds"] - (figures[without] if without else 0.0) for figures in found[name]]

    def against(copy: str, name: str, without: str | None = None) -> float:
        pairs = zip(seconds(copy), seconds(name, without), strict=True)
        return statistics.median(limit / own for limit, own in pairs)

    def speed(name: str) -> float:
        source = "fp8" if name in ("cast", "copy_fp8", "convert_fp8") else "bf16"
        return moved[source] / 1e9 / statistics.median(seconds(name))

    own = [name for name in found if name != "classic"]
    figures = {
        "cast_vs_copy": against("copy_fp8", "cast"),
        "convert_vs_copy": against("copy_bf16", "convert"),
        "convert_fp8_vs_copy": against("copy_fp8", "convert_fp8"),
        "convert_vs_copy_without_recheck": against("copy_bf16", "convert", "recheck_s"),
        "convert_fp8_vs_copy_without_recheck": against("copy_fp8", "convert_fp8", "recheck_s"),
        "convert_vs_cp": against("cp_bf16", "convert"),
        "cast_vs_copy_best": min(seconds("copy_fp8")) / min(seconds("cast")),
        "convert_vs_copy_best": min(seconds("copy_bf16")) / min(seconds("convert")),
        "convert_fp8_vs_copy_best": min(seconds("copy_fp8")) / min(seconds("convert_fp8")),
        "recheck_s": statistics.median(figures["recheck_s"] for figures in found["convert"]),
        "peak_mb_worker": max(each.get("peak_mb", 0.0) for name in own for each in found[name]),
        **{f"{name}_s": statistics.median(seconds(name)) for name in found},
        **{f"{name}_gbps": speed(name) for name in own},
    }
    if "classic" in found:
        figures["classic_vs_convert_s"] = 1 / against("convert", "classic")
        figures["classic_peak_mb"] = max(each["peak_mb"] for each in found["classic"])
    return figures


def speed_of(directory: Path, gigabytes: float, processes: Sequence[int]) -> int:
    """Print what the file system of a directory does."""
    best = 0.0
    for count in processes:
        size = str(int(gigabytes * 1e9))
        figures = _last_line(step("speed", directory, directory, "--workers", str(count), "--written-bytes", size))
        best = max(best, min(figures.values()))
        shown = f"written at {figures['write_gbps']:.2f} GB/s, read and written at {figures['copy_gbps']:.2f} GB/s"
        print(f"{count} processes: {shown}", flush=True)
    print(f"run.file_system_gbps: {best:.2f} of this host alone; add up what hosts reach at the same time")
    return 0


def weights_bytes(directory: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def _last_line(command: list[str]) -> Figures:
    """The figures that a step prints last."""
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False, timeout=STEP_TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _available_bytes() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    sys.exit(main())
