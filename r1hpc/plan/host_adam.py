"""One step of host Adam: what it moves through the memory of a node, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import ADAM_TRAFFIC_BYTES, Assumptions
from r1hpc.plan.host_memory import HostMemory


@dataclass(frozen=True)
class HostAdamStep:
    """Of the node that keeps the most optimizer state."""

    traffic_bytes: int
    seconds: tuple[float, float] | None
    """With all cores of a node that has many, with 16; null where no speed is known (a CPU rehearsal)."""


def host_adam(config: Config, hosts: tuple[HostMemory, ...], device: Assumptions) -> HostAdamStep | None:
    """null where the optimizer's state lies on the GPUs."""
    if not config.optimizer.optimizer_cpu_offload:
        return None
    traffic = ADAM_TRAFFIC_BYTES * max(host.optimizer_parameters for host in hosts)
    if device.speeds is None:
        return HostAdamStep(traffic, None)
    slow = device.speeds.host_adam
    fast = max(slow, device.speeds.host_adam_share * config.hosts.gpus_per_node)
    return HostAdamStep(traffic, (traffic / fast, traffic / slow))
