"""Ray as the driver uses it: join, wait for every host, place one actor on every GPU slot. The only import of ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.errors import BringUpError

_POLL_S = 0.2


_BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Linux draws one at each start, so hosts with the same one share a kernel, whatever network each has."""


@dataclass(frozen=True)
class Slot:
    """One GPU slot; the index in the sorted list of all slots is the rank."""

    host: str
    gpu: int
    bundle: int
    """Index in the placement group."""
    pid: int
    """Of the actor that answered from it."""
    machine: str
    """The same for hosts that share a machine, as those of a rehearsal do."""


@contextmanager
def connected(launch: Launch) -> Iterator[None]:
    """Be a driver of the launch's Ray, on its head host. Raises BringUpError when Ray does not let it in."""
    try:
        ray.init(
            address=launch.ray_address,
            _node_ip_address=launch.head.address,
            log_to_driver=False,
            logging_level="warning",
            namespace="r1hpc",
        )
    except (OSError, RuntimeError, RayError) as error:  # ConnectionError and TimeoutError are OSErrors
        head = launch.head.name
        raise BringUpError(
            f"the driver cannot join Ray at {launch.ray_address} on {head}: {_first_line(error)}; "
            f"see logs/{head}-ray.log of the attempt",
            [head],
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def wait_for_nodes(hosts: Sequence[ClusterHost], deadline_s: float, wait: Callable[[float], None]) -> None:
    """Return when Ray is up on every host. `wait` sleeps, and may raise to give up.

    Raises BringUpError: `waiting for Ray nodes: 14 of 16 after 60 s (missing node07, node12)`.
    """
    started = time.monotonic()
    while True:
        alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        missing = [host.name for host in hosts if host.address not in alive]
        waited = time.monotonic() - started
        if not missing:
            return
        if waited > deadline_s:
            raise BringUpError(
                f"waiting for Ray nodes: {len(hosts) - len(missing)} of {len(hosts)} after {waited:.0f} s "
                f"(missing {', '.join(missing)})",
                missing,
            )
        wait(_POLL_S)


@ray.remote(num_gpus=1, num_cpus=1, max_restarts=0)
class _Probe:
    """Answers from a slot."""

    def where(self) -> tuple[str, int, int, str]:
        """(host address, GPU id, pid, machine)"""
        context = ray.get_runtime_context()
        (gpu,) = context.get_accelerator_ids()["GPU"]
        return ray.util.get_node_ip_address(), int(gpu), os.getpid(), _BOOT.read_text(encoding="ascii").strip()


def place_slots(
    hosts: Sequence[ClusterHost], deadline_s: float, wait: Callable[[float], None]
) -> tuple[PlacementGroup, list[Slot]]:
    """One bundle of one GPU for every slot, an answer from each, sorted by (hostfile order, GPU): index is the rank.

    Raises BringUpError when a slot does not answer in time, or a host answers from other slots than its own.
    """
    count = sum(host.slots for host in hosts)
    deadline = time.monotonic() + deadline_s
    group = placement_group([{"GPU": 1, "CPU": 1}] * count, strategy="PACK", name="slots")
    _await([group.ready()], deadline, wait, f"the placement group of {count} GPU slots", lambda _: [])
    probes = [
        _Probe.options(  # type: ignore[attr-defined]
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        ).remote()
        for bundle in range(count)
    ]
    references = [probe.where.remote() for probe in probes]
    answers = _await(
        references, deadline, wait, "answers from the GPU slots", lambda bundles: _hosts_of(bundles, group, hosts)
    )
    names = {host.address: host.name for host in hosts}
    order = {host.name: index for index, host in enumerate(hosts)}
    slots = [Slot(names[address], gpu, bundle, *rest) for bundle, (address, gpu, *rest) in enumerate(answers)]
    slots.sort(key=lambda slot: (order[slot.host], slot.gpu))
    check_slots(hosts, slots)
    for probe in probes:
        ray.kill(probe)
    return group, slots


def check_slots(hosts: Sequence[ClusterHost], slots: Sequence[Slot]) -> None:
    """Raise BringUpError unless every host answers from exactly its slots, each GPU once."""
    for host in hosts:
        gpus = sorted(slot.gpu for slot in slots if slot.host == host.name)
        if len(gpus) != host.slots or len(set(gpus)) != len(gpus):
            text = f"{host.name} answers from GPUs {gpus}, but its hostfile line says slots={host.slots}"
            raise BringUpError(text, [host.name])


def _hosts_of(bundles: Sequence[int], group: PlacementGroup, hosts: Sequence[ClusterHost]) -> list[str]:
    """Names of the hosts on which these bundles of a placement group are, each once."""
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    nodes = placement_group_table(group)["bundles_to_node_id"]
    wanted = {addresses.get(nodes.get(bundle)) for bundle in bundles}
    return [host.name for host in hosts if host.address in wanted]


def _await(
    references: list[Any],
    deadline: float,
    wait: Callable[[float], None],
    what: str,
    blame: Callable[[Sequence[int]], Sequence[str]],
) -> list[Any]:
    """The values, in order. `blame` names the hosts behind the references of these indices."""
    started = time.monotonic()
    while True:
        ready, pending = ray.wait(references, num_returns=len(references), timeout=0.5)
        if not pending:
            return _values(references, what, blame)
        if time.monotonic() > deadline:
            waited = time.monotonic() - started
            hosts = blame([references.index(reference) for reference in pending])
            on = f" (missing some from {', '.join(hosts)})" if hosts else ""
            raise BringUpError(f"waiting for {what}: {len(ready)} of {len(references)} after {waited:.0f} s{on}", hosts)
        wait(0)


def _values(references: list[Any], what: str, blame: Callable[[Sequence[int]], Sequence[str]]) -> list[Any]:
    values = []
    for index, reference in enumerate(references):
        try:
            values.append(ray.get(reference))
        except RayError as error:
            hosts = blame([index])
            on = f" on {', '.join(hosts)}" if hosts else ""
            raise BringUpError(f"waiting for {what}: one died{on}: {_first_line(error)}", hosts) from error
    return values


def _first_line(error: Exception) -> str:
    """What a person needs of Ray's errors, which carry paragraphs of advice."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
