"""Where the engines of a run are: their processes on hosts and ports, and an owner for each in its GPU's bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from r1hpc.actors.engine import EngineNode
from r1hpc.actors.placed_engine import PlacedEngine
from r1hpc.actors.process_setup import ALL_GPUS
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.ray import Slot
from r1hpc.config import Config
from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.placement import EngineHost, EngineProcess, place_engines

GPU_SHARE = 0.2
"""Of the first GPU of a process in Ray's books; see trainers.GPU_SHARE."""


@dataclass(frozen=True)
class EngineSite:
    """What all engines of a run have in common."""

    config: Config
    launch: Launch
    group: PlacementGroup
    slots: Sequence[Slot]
    """By rank: an engine's GPUs are those of consecutive ranks."""
    logs: Path
    secret: str | None = field(repr=False)

    def engines(self) -> list[PlacedEngine]:
        """All engines, none of them started."""
        hosts = [EngineHost(host.address, self.launch.ports(host)) for host in self.launch.hosts]
        gpus_per_engine = self.config.sglang.rollout_num_gpus_per_engine
        return [self._engine(processes) for processes in place_engines(hosts, self.launch.head.slots, gpus_per_engine)]

    def _engine(self, processes: Sequence[EngineProcess]) -> PlacedEngine:
        head = processes[0]
        first = head.engine * head.num_gpus
        return PlacedEngine(
            f"engine{head.engine}",
            range(first, first + head.num_gpus),
            EngineControl(head.url, secret=self.secret),
            partial(self._owners, processes, first),
        )

    def _owners(self, processes: Sequence[EngineProcess], first: int) -> list[ActorHandle]:
        """A new owner for each process, in the bundle of its first GPU."""
        gpus_here = processes[0].num_gpus // processes[0].num_nodes
        bundles = [self.slots[first + process.node_rank * gpus_here].bundle for process in processes]
        return [
            EngineNode.options(  # type: ignore[attr-defined]
                num_gpus=GPU_SHARE,
                num_cpus=0,
                runtime_env={"env_vars": dict(ALL_GPUS)},
                scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle),
            ).remote(self.config, process, self.logs, self.secret)
            for process, bundle in zip(processes, bundles, strict=True)
        ]
