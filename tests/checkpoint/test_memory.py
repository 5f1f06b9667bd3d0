"""What a worker holds in memory does not depend on the size of a tensor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.submit.parameters import HOME

MB = 1_000_000
BOUND = 64 * MB
"""Buffers of a few bands of 4 MiB, in fp8, float32 and bf16; far below any tensor of LARGE."""
TINY = {"num_hidden_layers": 2, "n_routed_experts": 4, "tie_word_embeddings": True}
# An embedding of 246 MB in bf16, and three MLP weights of 41 MB each in fp8.
LARGE = TINY | {"hidden_size": 2048, "vocab_size": 60_000, "intermediate_size": 20_000}
_PEAKS = """
import json, sys
from pathlib import Path
from tests.checkpoint.runs import cast, convert
base = Path(sys.argv[1])
peaks = []
for model in ("tiny", "large"):
    fp8, bf16 = base / model, base / f"{model}-bf16"
    peaks.append([
        cast(fp8, bf16).peak_bytes,
        convert(bf16, base / f"{model}-ref").peak_bytes,
        convert(fp8, base / f"{model}-direct").peak_bytes,
    ])
print(json.dumps(peaks))
"""


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Path]:
    for name, sizes in (("tiny", TINY), ("large", LARGE)):
        write_tiny_model(tmp_path / name, overrides=sizes, mtp=False, shards=1)
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep 2 GB


def test_a_tensor_of_246_mb_takes_no_more_memory_than_a_few_bands(models: Path) -> None:
    # In a process of its own: a worker begins with all that its parent has.
    done = subprocess.run(
        [sys.executable, "-c", _PEAKS, str(models)], cwd=HOME, capture_output=True, text=True, timeout=200, check=True
    )
    tiny, large = json.loads(done.stdout)
    for what, before, after in zip(("cast", "convert", "convert from fp8"), tiny, large, strict=True):
        assert before > 50 * MB  # the worker was measured at all
        assert after - before < BOUND, f"{what}: {after / MB:.0f} MB, {before / MB:.0f} MB with tiny tensors"
