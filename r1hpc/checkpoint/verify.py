"""Whether a checkpoint is what it must be: structure, hashes, values. Megatron would load most of what is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from r1hpc.checkpoint.findings import Findings, Scope, Verification
from r1hpc.checkpoint.kind import Kind, kind_of
from r1hpc.checkpoint.torch_dist import resolve
from r1hpc.checkpoint.verify_hugging_face import verify_hugging_face
from r1hpc.checkpoint.verify_torch_dist import verify_torch_dist


def verify(
    path: Path, *, source: Path | None = None, scope: Scope, workers: int, say: Callable[[str], None]
) -> Findings:
    """Check the checkpoint in `path` against itself, its records, and its source where that is known and there.

    source: the Hugging Face checkpoint it was made from; null: the one that it names. Raises CheckpointError when
    `path` or a given `source` holds no checkpoint at all; whatever else is wrong is in the findings.
    """
    verification = Verification(scope, workers, say)
    # Within a checkpoint `.` has no name, and it is by its name that a release is known.
    path = Path(os.path.abspath(path))
    match kind_of(path):
        case Kind.TORCH_DIST:
            verify_torch_dist(resolve(path), source, verification)
        case Kind.HUGGING_FACE:
            verify_hugging_face(path, source, verification)
    return verification.findings
