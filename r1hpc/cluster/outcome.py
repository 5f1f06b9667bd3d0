"""How an attempt ended: the exit code that all its agents leave with, and why."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1hpc import exit_codes
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The end of an attempt."""

    exit_code: int
    reason: str
    lost_nodes: tuple[str, ...] = ()
    """Nodes to blame; one that is blamed twice is used no more."""

    def to_json(self) -> dict[str, Any]:
        """For the roll call and for outcome.json."""
        return asdict(self) | {"lost_nodes": list(self.lost_nodes)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Outcome:
        """The reverse of to_json."""
        return cls(record["exit_code"], record["reason"], tuple(record["lost_nodes"]))


def nodes_lost(names: Sequence[str], reason: str) -> Outcome:
    """Nodes that were up stopped answering."""
    return Outcome(exit_codes.NODE_LOST, f"lost {', '.join(names)}: {reason}", tuple(names))


def record_progress(attempt: AttemptDir, iteration: int) -> None:
    """Note that the attempt has committed `iteration`, which no attempt before it had; by the driver, after each.

    It ends the count of failures without progress. A file of its own: the agent, which writes outcome.json, may do so
    at the same moment.
    """
    publish_json(attempt.committed, {"iteration": iteration, "time": time.time()})


def read_outcome(path: Path) -> Outcome | None:
    """What outcome.json or driver.json says; None where there is none yet."""
    try:
        return Outcome.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Publish outcome.json; on the head only.

    A file system that takes nothing more is only logged: the exit code still says how the attempt ended.
    """
    try:
        publish_json(path, outcome.to_json())
    except OSError as error:
        logger.error("%s cannot be written: %s", path, error)


def write_outcome_if_absent(path: Path, outcome: Outcome) -> None:
    """Publish outcome.json unless there is one: for an agent that has lost the head, whose word counts for more."""
    # Agents of several hosts may do so at once, and pids repeat from host to host.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        publish_json(temporary, outcome.to_json())
        os.link(temporary, path)  # unlike a rename it replaces nothing
    except FileExistsError:
        return
    except OSError as error:
        logger.error("%s cannot be written: %s", path, error)
    finally:
        temporary.unlink(missing_ok=True)
