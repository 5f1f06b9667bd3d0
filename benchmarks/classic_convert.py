"""The usual way from Hugging Face to torch_dist: build Megatron's model, load the tensors, let Megatron save it.

    python -m benchmarks.classic_convert SOURCE TARGET

One process on a CPU; SOURCE is a bf16 checkpoint. Prints a JSON object of figures; imports are not timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from safetensors import safe_open

from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint, open_checkpoint
from r1hpc.model import compat
from r1hpc.model.build import build_model, sharded_state
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from tests.forked_ranks import join_gloo

DEADLINE_S = 600.0


def main() -> None:
    """Convert and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    shutil.rmtree(options.target, ignore_errors=True)
    compat.prepare("cpu")
    # Its default starts a manager process by spawn, which imports everything anew.
    filesystem_async.get_write_results_queue("fork")
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        join_gloo(0, 1, Path(scratch) / "rendezvous", DEADLINE_S)
        layout = Layout()
        layout.initialize()
        print(json.dumps(convert(open_checkpoint(options.source), options.target, layout)))
        torch.distributed.destroy_process_group()


def convert(source: HfCheckpoint, target: Path, layout: Layout) -> dict[str, float]:
    """Build, load, save; seconds of each and the peak of this process's resident memory."""
    begin = time.perf_counter()
    state = sharded_state(build_model(source.config, layout, TrainSettings(torch.bfloat16)))
    apply_factories(state)
    built = time.perf_counter()
    load(source, state)
    loaded = time.perf_counter()
    target.mkdir(parents=True)
    dist_checkpointing.save({"model": state}, str(target))
    saved = time.perf_counter()
    return {
        "seconds": saved - begin,
        "load_s": loaded - built,
        "save_s": saved - loaded,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def load(source: HfCheckpoint, state: dict[str, object]) -> None:
    """Copy every tensor of the checkpoint into the box of the model that it fills."""
    names = {(name.key, name.offset): name for name in source.names}
    files = {header.file: safe_open(header.file, "pt") for header in source.headers}
    for value in nested_values(state):
        if isinstance(value, ShardedTensor):
            assert value.data is not None, value.key
            name = names.pop((value.key, tuple(value.global_offset)))
            tensor = files[source.entries[name.hf].file].get_tensor(name.hf)  # type: ignore[no-untyped-call]
            value.data.copy_(tensor.view(value.data.shape))
    assert not names, f"{len(names)} tensors were not loaded, among them {next(iter(names.values())).hf}"


if __name__ == "__main__":
    main()
