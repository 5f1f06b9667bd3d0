"""The hashes that a cast or an export of ours left beside its files, and what was read compared with them."""

from __future__ import annotations

from collections.abc import Mapping

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.hf_checkpoint import HfCheckpoint, read_manifest
from r1hpc.errors import CheckpointError


def recorded_hashes(source: HfCheckpoint) -> dict[str, str]:
    """xxh3_64 of every tensor as it was written, scales included; {} for a checkpoint that is not ours."""
    files = read_manifest(source.directory).get("files", {})
    return {name: value for record in files.values() for name, value in record["tensors"].items()}


def require_recorded(reader: BandReader, recorded: Mapping[str, str]) -> None:
    """Raise CheckpointError when a tensor that was read is not what was written there."""
    for name, found in reader.hashes.items():
        if recorded.get(name, found) != found:
            checkpoint = reader.checkpoint
            raise CheckpointError(
                f"{checkpoint.entries[name].file}: {name} has xxh3 {found}; {recorded[name]} was written there: the "
                f"file has changed since; remove {checkpoint.directory} and make it again"
            )
