"""Quantities that no machine has: refused by name before the arithmetic of a plan overflows on them."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.config import Config
from r1hpc.plan.problems import Problem

LEAST, MOST = 1e-6, 1e9
"""In the unit of each key (GiB, GB/s, hours, minutes): far from what exists, and from where floats give out."""


def magnitude_problems(config: Config) -> Iterator[Problem]:
    """Every quantity of a machine or a time that is out of all range."""
    hosts, run = config.hosts, config.run
    quantities = {
        "hosts.gpu_memory_gib": hosts.gpu_memory_gib,
        "hosts.host_memory_gib": hosts.host_memory_gib,
        "hosts.object_store_gib": hosts.object_store_gib,
        "run.file_system_gbps": run.file_system_gbps,
        "run.mean_hours_between_interruptions": run.mean_hours_between_interruptions,
        "run.expected_rollout_minutes": run.expected_rollout_minutes or 1,  # 0 is none
    }
    for key, value in quantities.items():
        if not LEAST <= value <= MOST:
            yield Problem(key, f"{key} is {value:g}; a plan takes {LEAST:g} to {MOST:g}")
