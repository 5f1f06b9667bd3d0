"""One step of benchmarks/convert.py in a process of its own, so that its memory is its own: a JSON object of figures.

python -m benchmarks.convert_step {copy,cp,cast,convert,speed} SOURCE TARGET [--workers N] [--written-bytes N] [--cold]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.plain_copy import copy_files, cp_files, evict, file_system_speed, warm
from r1hpc.checkpoint.cast import plan_cast, run_cast_task
from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import run_convert_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint

EXPERT_SLICES = 4
TENSOR_CHUNKS = 8
"""As the recipe converts R1: EP4, and TP8 to load it."""


@dataclass
class Clocked:
    """Takes the place of a log: keeps the time at which each subject was last spoken of."""

    last: dict[str, float] = field(default_factory=dict)

    def __call__(self, line: str) -> None:
        self.last[line.partition(":")[0]] = time.perf_counter()


def main() -> None:
    """Do the step and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("copy", "cp", "cast", "convert", "speed"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--written-bytes", type=int, help="copy: not as many as are read; speed: of all files")
    parser.add_argument("--cold", action="store_true", help="evict the source from the page cache before")
    options = parser.parse_args()
    if options.kind == "speed":
        written, copied = file_system_speed(options.target, options.written_bytes, options.workers)
        print(json.dumps({"write_gbps": written / 1e9, "copy_gbps": copied / 1e9}))
        return
    files = sorted(options.source.glob("*.safetensors"))
    # Here, after all imports, so that every step begins with the pages that the last one gave back: a virtual machine
    # has returned them to its host some seconds later, and getting them again costs more than a copy.
    shutil.rmtree(options.target, ignore_errors=True)
    (evict if options.cold else warm)(files)
    if options.kind == "copy":
        figures = {"seconds": copy_files(files, options.target, options.workers, options.written_bytes)}
    elif options.kind == "cp":
        figures = {"seconds": cp_files(files, options.target, options.workers)}
    elif options.kind == "cast":
        figures = cast(options.source, options.target, options.workers)
    else:
        figures = convert(options.source, options.target, options.workers)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({**figures, "cpu_s": children.ru_utime + children.ru_stime}))


def cast(source: Path, target: Path, workers: int) -> dict[str, float]:
    """Cast all files, from reading the headers to the published index."""
    begin = time.perf_counter()
    outcome = run_cast_task(plan_cast(source, target), 0, 1, workers, Clocked())
    assert outcome.published, "the cast is not complete"
    return {"seconds": time.perf_counter() - begin, "peak_mb": outcome.peak_bytes / 1e6}


def convert(source: Path, target: Path, workers: int) -> dict[str, float]:
    """Convert all slices, from reading the headers to the tracker; what was written is read again before that."""
    begin, log = time.perf_counter(), Clocked()
    checkpoint = open_checkpoint(source)
    slices = make_slices(checkpoint.shape.num_layers, 1, None, None, EXPERT_SLICES, "layout")
    plan = plan_conversion(checkpoint, target, slices, TENSOR_CHUNKS)
    outcome = run_convert_task(plan, 0, 1, workers, log)
    assert outcome.published, "the conversion is not complete"
    written, reread = log.last["convert, task 1 of 1"], log.last["reading it again"]
    return {
        "seconds": time.perf_counter() - begin,
        "recheck_s": reread - written,
        "peak_mb": outcome.peak_bytes / 1e6,
    }


if __name__ == "__main__":
    main()
