"""Telling the two kinds of checkpoints apart."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from r1hpc.checkpoint.hf_checkpoint import INDEX
from r1hpc.checkpoint.torch_dist import METADATA, TRACKER, why_unseen
from r1hpc.errors import CheckpointError


class Kind(Enum):
    """How weights are stored."""

    TORCH_DIST = "torch_dist"
    HUGGING_FACE = "Hugging Face safetensors"


def kind_of(path: Path) -> Kind:
    """Which kind of checkpoint `path` holds, by its file names. Raises CheckpointError when it holds none."""
    # Path.is_file raises where os.path answers no: in a directory that may not be looked into.
    if any(os.path.isfile(path / name) for name in (METADATA, TRACKER)):
        return Kind.TORCH_DIST
    if any(os.path.isfile(path / name) for name in (INDEX, "model.safetensors")):
        return Kind.HUGGING_FACE
    raise CheckpointError(
        f"{path}: holds no checkpoint: it has neither {METADATA} nor {TRACKER} (torch_dist), nor {INDEX} (Hugging Face)"
        + why_unseen(path)
    )
