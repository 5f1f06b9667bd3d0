"""Telling the two kinds of checkpoints apart."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from r1hpc.checkpoint.hf_checkpoint import INDEX
from r1hpc.checkpoint.torch_dist import METADATA, TRACKER
from r1hpc.errors import CheckpointError


class Kind(Enum):
    """How weights are stored."""

    TORCH_DIST = "torch_dist"
    HUGGING_FACE = "Hugging Face safetensors"


def kind_of(path: Path) -> Kind:
    """Which kind of checkpoint `path` holds, by its file names. Raises CheckpointError when it holds none."""
    if (path / METADATA).is_file() or (path / TRACKER).is_file():
        return Kind.TORCH_DIST
    if (path / INDEX).is_file() or (path / "model.safetensors").is_file():
        return Kind.HUGGING_FACE
    raise CheckpointError(
        f"{path}: holds no checkpoint: it has neither {METADATA} nor {TRACKER} (torch_dist), nor {INDEX} (Hugging Face)"
        + ("" if path.is_dir() else "; it is no directory")
    )
