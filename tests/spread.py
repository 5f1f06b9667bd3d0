"""How `pytest -n 4 --dist loadscope --no-loadscope-reorder` spreads the tests over its workers.

A file goes to one worker, and so do files that share a server or a cluster. A worker takes the next group when it is
done with one. Half of the time goes by waiting for daemons and half computing, so both begin together, what takes
longest first, and short files fill the gaps at the end. OMP_NUM_THREADS=1: more threads than cores wait for each other.
"""

from __future__ import annotations

from typing import Final

import pytest

GROUPS: Final = {
    "rehearsal": ("rehearsal/test_accounting.py", "rehearsal/test_node_loss.py", "rehearsal/test_up_down.py"),
    "rollout": (
        "rollout/test_client_on_engine.py",
        "rollout/test_engine_parity.py",
        "rollout/test_guard.py",
        "rollout/test_sampler_engines.py",
        "rollout/test_server.py",
        "rollout/test_trainer_parity.py",
        "rollout/test_two_engines.py",
    ),
    "submit": (
        "submit/test_live.py",
        "submit/test_requeue_slurm.py",
        "submit/test_site_checks.py",
        "submit/test_submit_errors.py",
        "submit/test_submit_slurm.py",
    ),
    "jobs": ("jobs/test_array_jobs_slurm.py", "jobs/test_bring_up_slurm.py"),
}
"""Files that use the same session fixture, a cluster or an engine, which another worker would start once more."""

FIRST: Final = (
    "rehearsal",
    "train/parity/test_layouts.py",
    "rollout",
    "submit",
    "jobs",
    "train/parity/test_resume.py",
    "train/parity/test_actor.py",
    "train/parity/test_transformers.py",
)
"""What takes longest, in the order in which it begins."""
EARLY: Final = ("actors/", "canary/", "sync/", "run/", "rehearsal/", "cluster/")
"""Whatever else starts processes comes next."""

_GROUP_OF_FILE: Final = {file: group for group, files in GROUPS.items() for file in files}


def group_of(nodeid: str) -> str:
    """The group of a test."""
    file = nodeid.partition("::")[0].removeprefix("tests/")
    return _GROUP_OF_FILE.get(file, file)


def turn(group: str) -> int:
    """When a group begins: less is earlier."""
    if group in FIRST:
        return FIRST.index(group)
    return len(FIRST) + (not group.startswith(EARLY))


def put_longest_first(items: list[pytest.Item]) -> None:
    """Order the tests of a run by when their groups begin."""
    items.sort(key=lambda item: turn(group_of(item.nodeid)))
