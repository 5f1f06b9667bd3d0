"""What a checkpoint was made from, as far as it is known and still there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.findings import Findings
from r1hpc.checkpoint.hf_checkpoint import CONFIG, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.kind import Kind, kind_of
from r1hpc.checkpoint.torch_dist import TorchDist, open_torch_dist
from r1hpc.errors import CheckpointError, ProblemsError, R1hpcError


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint says of its source."""

    path: Path
    identity: str

    def names(self, source: HfCheckpoint) -> bool:
        """Whether `source` is this one, be it as it was then or as it is now."""
        return source.identity == self.identity or source.directory.resolve() == self.path.resolve()


def open_origin(given: Path | None, recorded: Recorded | None, findings: Findings) -> HfCheckpoint | TorchDist | None:
    """The checkpoint to compare with; null, with the reason among the findings, where there is none.

    given: what the user names; null: what is on record. Raises CheckpointError when what the user names is not there.
    """
    directory = _find(given, recorded, findings)
    if directory is None:
        return None
    try:
        if kind_of(directory) is Kind.TORCH_DIST:
            return open_torch_dist(directory)
        source = open_checkpoint(directory)
    except R1hpcError as error:
        findings.problems += [f"source: {problem}" for problem in each_problem(error)]
        return None
    if recorded and recorded.names(source) and source.identity != recorded.identity:
        findings.unchecked.append(
            f"whether {directory} is what was read then: its files, or their times, are others now; "
            "comparing values tells whether that matters"
        )
    return source


def open_source(given: Path | None, recorded: Recorded | None, findings: Findings) -> HfCheckpoint | None:
    """As `open_origin`, of what can only be a Hugging Face checkpoint."""
    source = open_origin(given, recorded, findings)
    if isinstance(source, TorchDist):
        findings.problems.append(f"source: {source.directory}: is no Hugging Face checkpoint")
        return None
    return source


def config_problems(file: Path, config: Mapping[str, Any], source: HfCheckpoint) -> Iterator[str]:
    """Where the configuration in `file` is not that of the source; the quantization may be another."""
    for key in sorted((config.keys() | source.config.keys()) - {"quantization_config"}):
        here, there = (_shown(values, key) for values in (config, source.config))
        if here != there:
            yield f"{file}: {key} is {here}; in {source.directory / CONFIG} it is {there}"


def _shown(values: Mapping[str, Any], key: str) -> str:
    """A value as a message shows it."""
    return repr(values[key]) if key in values else "not there"


def each_problem(error: R1hpcError) -> list[str]:
    """The problems that an error tells of."""
    return list(error.problems) if isinstance(error, ProblemsError) else [str(error)]


def _find(given: Path | None, recorded: Recorded | None, findings: Findings) -> Path | None:
    if given is not None:
        if not os.path.isdir(given):
            raise CheckpointError(f"{given}: is no directory; --source names a Hugging Face checkpoint")
        return given
    if recorded is None:
        findings.unchecked.append("values against a source: none is on record; give --source HF_DIR")
        return None
    if not os.path.isdir(recorded.path):
        findings.unchecked.append(f"values: their source {recorded.path} is not there; give --source HF_DIR")
        return None
    return recorded.path
