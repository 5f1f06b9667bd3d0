"""The Hugging Face checkpoint that another one was made from, as far as it is known and still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.findings import Findings
from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint, open_checkpoint
from r1hpc.errors import CheckpointError, ProblemsError, R1hpcError


def open_source(given: Path | None, record: Mapping[str, Any], findings: Findings) -> HfCheckpoint | None:
    """The checkpoint to compare with; null, with the reason among the findings, where there is none.

    given: what the user names; null: what `record` (path, identity; {} for none) names. Raises CheckpointError when
    what the user names is not there.
    """
    if given is None and not record:
        findings.unchecked.append("values against a source: none is on record; give --source HF_DIR")
        return None
    directory = given or Path(record["path"])
    if not directory.is_dir():
        if given is not None:
            raise CheckpointError(f"{given}: is no directory; --source names a Hugging Face checkpoint")
        findings.unchecked.append(f"values: their source {directory} is not there; give --source HF_DIR")
        return None
    try:
        source = open_checkpoint(directory)
    except R1hpcError as error:
        findings.problems += [f"source: {problem}" for problem in each_problem(error)]
        return None
    if record and source.identity != record["identity"]:
        findings.unchecked.append(
            f"whether {directory} is what was read then: its files, or their times, are others now; "
            "comparing values tells whether that matters"
        )
    return source


def each_problem(error: R1hpcError) -> list[str]:
    """The problems that an error tells of."""
    return list(error.problems) if isinstance(error, ProblemsError) else [str(error)]
