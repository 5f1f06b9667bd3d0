"""Whether an export may write into a directory: never into what it reads, nor over a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from r1hpc.checkpoint.hf_checkpoint import CONFIG, INDEX, MANIFEST
from r1hpc.checkpoint.torch_dist import METADATA, TRACKER
from r1hpc.errors import CheckpointError

STAGING = ".export"
"""Directory of the records of an export that is not complete; what lies beside it was written by one."""


def claim_target(target: Path, inputs: Iterable[Path]) -> None:
    """Raise CheckpointError when `target` is, holds or lies in one of the inputs, or holds a checkpoint."""
    real = target.resolve()
    for directory in inputs:
        source = directory.resolve()
        if real == source or real in source.parents or source in real.parents:
            how = "is" if real == source else "holds" if real in source.parents else "lies in"
            raise CheckpointError(f"{target}: {how} {directory}, which the export reads; name another directory")
    held = [name for name in (INDEX, METADATA, TRACKER) if os.path.lexists(target / name)]
    if not (target / STAGING).is_dir():
        held += [name for name in (CONFIG, MANIFEST) if os.path.lexists(target / name)]
        held += sorted(file.name for file in target.glob("*.safetensors"))
    if held:
        raise CheckpointError(
            f"{target}: already holds a checkpoint, or a part of one ({held[0]}); name another directory, or remove it"
        )
