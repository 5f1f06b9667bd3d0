"""The plan of a run: everything that can be known before anything is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from r1hpc.config import Config
from r1hpc.errors import PlanError
from r1hpc.plan.alternatives import Alternative, engine_alternatives
from r1hpc.plan.assumptions import Assumptions, assumptions_for
from r1hpc.plan.batches import Batches, make_batches
from r1hpc.plan.dispatch import Dispatch, make_dispatch
from r1hpc.plan.engine import EnginePlan, make_engine
from r1hpc.plan.engine_problems import engine_problems
from r1hpc.plan.fit import fit_problems
from r1hpc.plan.gpu_memory import Phase, groups_rebuilt, make_phases, trainer_asleep_bytes
from r1hpc.plan.host_adam import host_adam
from r1hpc.plan.host_memory import HostMemory, bytes_per_stage, make_host_memory
from r1hpc.plan.iteration import iteration_time
from r1hpc.plan.layers import Stage, make_stages, split_layers
from r1hpc.plan.magnitudes import magnitude_problems
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.notices import make_warnings
from r1hpc.plan.parameters import model_modules, total_parameters
from r1hpc.plan.problems import Problem, number_problems
from r1hpc.plan.storage import StoragePlan, make_storage
from r1hpc.plan.sync import SyncPlan, make_sync
from r1hpc.plan.times import TimePlan, make_times
from r1hpc.plan.topology import Topology

Where = Callable[[str], str]
"""Where a dotted key stands in the user's files: "r1.yaml:47"."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of the whole model."""

    total: int
    """Main model, without router biases and prediction layers."""
    experts: int
    """Routed experts among them."""
    attention_per_layer: int
    expert: int
    """One routed expert."""
    router_biases: int
    mtp: int
    """Multi-token-prediction layers, without their copies of embedding and head; not trained."""


@dataclass(frozen=True)
class Plan:
    """A plan that fits."""

    name: str
    device: Literal["cuda", "cpu"]
    time_limit_minutes: int
    topology: Topology
    parameters: Parameters
    stages: tuple[Stage, ...]
    batches: Batches
    dispatch: Dispatch
    engine: EnginePlan
    alternatives: tuple[Alternative, ...]
    """What the KV cache would hold with other engine settings."""
    phases: tuple[Phase, ...]
    """GPU memory: train, rollout, sync."""
    trainer_asleep: tuple[int, int]
    """GPU bytes of a sleeping trainer with its process groups destroyed, and with them kept."""
    groups_rebuilt: bool
    """Which of the two is done."""
    hosts: tuple[HostMemory, ...]
    sync: SyncPlan
    storage: StoragePlan
    times: TimePlan
    warnings: tuple[str, ...]

    @property
    def world_size(self) -> int:
        """GPUs of the train job."""
        return self.topology.world_size

    @property
    def num_nodes(self) -> int:
        """Nodes of the train job."""
        return self.topology.num_nodes

    def phase(self, name: str) -> Phase:
        """The GPU memory of train, rollout or sync."""
        return next(phase for phase in self.phases if phase.name == name)

    def engine_ranks(self, engine: int) -> range:
        """The training ranks on whose GPUs an engine runs, in the order of its own ranks."""
        size = self.engine.grid.gpus
        return range(engine * size, (engine + 1) * size)

    def engine_stages(self, engine: int) -> range:
        """The pipeline stages whose GPUs an engine runs on."""
        ranks = self.engine_ranks(engine)
        return range(ranks[0] // self.topology.stage_size, ranks[-1] // self.topology.stage_size + 1)

    @property
    def gpu_bytes_needed(self) -> int:
        """The fullest GPU in its fullest phase."""
        return max(phase.worst.total_bytes for phase in self.phases)

    @property
    def fullest_host(self) -> HostMemory:
        """The nodes whose memory is fullest."""
        return max(self.hosts, key=lambda host: host.use.total_bytes)

    @property
    def host_bytes_needed(self) -> int:
        """The memory of the fullest node: what the preflight asks of every node."""
        return self.fullest_host.use.total_bytes

    @property
    def host_bytes_per_node(self) -> tuple[int, ...]:
        """For each pipeline stage, the fullest node that carries it."""
        return bytes_per_stage(self.hosts, self.topology.pp)

    @property
    def disk_bytes_needed(self) -> int:
        """On the shared file system, all checkpoints together."""
        return self.storage.total_bytes

    @property
    def save_s(self) -> float:
        """Expected seconds of one commit."""
        return self.times.save_s

    @property
    def advised_save_minutes(self) -> int:
        """Advised minutes between commits."""
        return self.times.advised_save_minutes

    @property
    def signal_lead_s(self) -> int:
        """Seconds before the time limit at which Slurm signals the job."""
        return self.times.signal_lead_s


def plan_problems(config: Config, shape: ModelShape, num_prompts: int | None = None) -> tuple[Problem, ...]:
    """Every reason why the configuration cannot be planned or cannot fit; empty when it can."""
    problems = _number_problems(config, shape)
    return problems or _plan_and_problems(config, shape, num_prompts)[1]


def make_plan(config: Config, shape: ModelShape, *, num_prompts: int | None = None, where: Where | None = None) -> Plan:
    """The plan of a configuration. A pure function.

    num_prompts: size of the data set, for the number of epochs.
    where: tells where a key stands, to prefix its problem with.
    Raises PlanError with every problem. What does not fit can only be said once all numbers divide.
    """
    problems = _number_problems(config, shape)
    if not problems:
        plan, problems = _plan_and_problems(config, shape, num_prompts)
        if not problems:
            return plan
    raise PlanError([f"{where(problem.key)}: {problem.text}" if where else problem.text for problem in problems])


def _number_problems(config: Config, shape: ModelShape) -> tuple[Problem, ...]:
    return (*magnitude_problems(config), *number_problems(config, shape), *engine_problems(config, shape))


def _plan_and_problems(config: Config, shape: ModelShape, num_prompts: int | None) -> tuple[Plan, tuple[Problem, ...]]:
    plan = _plan(config, shape, assumptions_for(config.hosts.device), num_prompts)
    return plan, fit_problems(config, plan.engine, plan.phases, plan.hosts, plan.times)


def _plan(config: Config, shape: ModelShape, device: Assumptions, num_prompts: int | None) -> Plan:
    perf = config.perf
    modules = model_modules(shape)
    topology = Topology(
        num_nodes=config.hosts.num_nodes,
        gpus_per_node=config.hosts.gpus_per_node,
        tp=perf.tensor_model_parallel_size,
        cp=perf.context_parallel_size,
        pp=perf.pipeline_model_parallel_size,
        ep=perf.expert_model_parallel_size,
        etp=perf.expert_tensor_parallel_size,
    )
    layers = split_layers(
        shape.num_layers,
        topology.pp,
        perf.decoder_first_pipeline_num_layers,
        perf.decoder_last_pipeline_num_layers,
    )
    stages = make_stages(modules, topology, layers)
    engine = make_engine(config, shape, modules, device)
    batches = make_batches(config, engine.num_engines, num_prompts)
    phases = make_phases(config, shape, topology, stages, engine, batches, device)
    hosts = make_host_memory(config, topology, stages, engine, phases, device)
    storage = make_storage(config, shape, modules)
    adam = host_adam(config, hosts, device)
    iteration = iteration_time(config, shape, batches, topology.world_size, adam, device)
    times = make_times(config, storage, adam, topology.world_size, iteration, device)
    alternatives = engine_alternatives(config, shape, modules, topology, device)
    return Plan(
        name=config.run.name,
        device=config.hosts.device,
        time_limit_minutes=config.slurm.time_limit,
        topology=topology,
        parameters=Parameters(
            total=total_parameters(modules.main),
            experts=modules.num_moe_layers * modules.num_experts * modules.expert.parameters,
            attention_per_layer=modules.attention.parameters,
            expert=modules.expert.parameters,
            router_biases=modules.num_moe_layers * sum(modules.router.biases),
            mtp=total_parameters(modules.mtp),
        ),
        stages=stages,
        batches=batches,
        dispatch=make_dispatch(config, shape, topology, batches),
        engine=engine,
        alternatives=alternatives,
        phases=phases,
        trainer_asleep=(
            trainer_asleep_bytes(topology, device, rebuilt=True),
            trainer_asleep_bytes(topology, device, rebuilt=False),
        ),
        groups_rebuilt=groups_rebuilt(config, device),
        hosts=hosts,
        sync=make_sync(config, modules, engine, topology, device.speeds),
        storage=storage,
        times=times,
        warnings=make_warnings(config, shape, topology, batches, engine, alternatives, hosts, times),
    )
