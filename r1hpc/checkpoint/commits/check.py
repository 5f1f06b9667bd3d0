"""Reading a whole commit: every byte of it is compared with the hash that was noted when it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from r1hpc.checkpoint.commits.record import SMALL_BYTES, hash_file, judge
from r1hpc.checkpoint.commits.retention import reading
from r1hpc.checkpoint.findings import Findings, Scope
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.checkpoint.verify import verify
from r1hpc.errors import CheckpointError


def check_commit(directory: Path, *, workers: int, say: Callable[[str], None]) -> Findings:
    """What is wrong with a commit; nothing removes it meanwhile."""
    try:
        commit = judge(directory)
    except CheckpointError as error:
        return Findings(problems=[str(error)])
    with reading(directory):
        findings = verify(directory, scope=Scope(hashes=True, values=False), workers=workers, say=say)
        findings.problems += [
            f"{directory / name}: is not what was committed: its xxh3 is another"
            for name, file in commit.files.items()
            if file.xxh3 is not None and file.size > SMALL_BYTES and hash_file(directory / name) != file.xxh3
        ]
    small = [name for name, file in commit.files.items() if file.xxh3 is not None]
    findings.checked.append(f"commit: {len(commit.files)} files are there, {len(small)} hashed whole, {MANIFEST} too")
    return findings
