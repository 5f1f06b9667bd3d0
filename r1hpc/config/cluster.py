"""The machine: hosts, the scheduler, the array stages and the run itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from r1hpc.config.base import Minutes, Section, TextList, Words
from r1hpc.config.nodeset import check_node_set
from r1hpc.config.quantities import (
    Gibibytes,
    GigabytesPerSecond,
    Hours,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Seed,
)

Port = Annotated[int, Field(ge=1024, le=65535)]


def _run_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("must start with a letter or digit and hold only letters, digits, '.', '_' and '-'")
    return value


RunName = Annotated[str, AfterValidator(_run_name), Words("name of letters, digits, '.', '_' and '-'")]
"""A name that is a job name, a directory name and a process mark."""
NodeSet = Annotated[str, AfterValidator(check_node_set), Words("node set, such as node[01-03,07]")]
"""Names of nodes as Slurm's options take them."""


class HostsConfig(Section):
    """How many hosts, what each has, and how they reach each other."""

    num_nodes: Annotated[int, Field(ge=1, le=65536)]
    """Hosts of the train job."""
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)]
    """GPUs of a host: the slots of its hostfile line. CPU rehearsals count logical slots."""
    hostfile: str = "auto"
    """auto takes the nodes that Slurm gives; a path (hostfiles/r1.hostfile) asks for exactly its hosts, in order."""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu rehearses: gloo, logical GPU slots."""
    gpu_memory_gib: Gibibytes = 80.0
    """Memory of one GPU as sold, GiB: 80 on an H100."""
    host_memory_gib: Gibibytes
    """Memory of a host that the job may use, GiB."""
    fabric_interface: str | None = None
    """Network interface whose address goes to the hostfile (ib0, eth0, lo); null takes Slurm's NodeAddr."""
    mpi: str = "pmi2"
    """srun --mpi for the preflight: pmi2 suits MPICH (pip install mpich), pmix suits Open MPI."""
    port_base: Port = 26000
    """First of the ports that a job may listen on: it takes one of 8 bands above it, one that is free on all nodes."""
    port_span: Annotated[int, Field(ge=200)] = 400
    """Ports of the band that belong to one host; hosts that share a machine (loopback) get one band each."""
    cpus_per_node: PositiveInt | None = None
    """CPUs asked for on each node; null asks for the whole node (--exclusive)."""
    preflight_timeout_s: PositiveInt = 300
    """Seconds in which every node must have reported."""
    bring_up_timeout_s: PositiveInt = 300
    """Seconds in which Ray must be up on every node and placed on every slot."""
    object_store_gib: Gibibytes = 32.0
    """Ray object store of a host, GiB; counted in the plan."""


class SlurmConfig(Section):
    """How the jobs are asked for; a site file (configs/sites/NAME.yaml) usually sets these."""

    partition: str | None = None
    """Partition of every job; null takes the default one. --partition"""
    account: str | None = None
    """Account that is charged. --account"""
    qos: str | None = None
    """Quality of service. --qos"""
    constraint: str | None = None
    """Features that the nodes must have. --constraint"""
    reservation: str | None = None
    """Reservation to run in. --reservation"""
    exclude: NodeSet | None = None
    """Node set never to use (node[03,07-08]). --exclude"""
    time_limit: Minutes = 1440
    """Time limit of the train job. --time"""
    gpus: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    """How the site wants GPUs asked for: --gpus-per-node=8, --gres=gpu:8, or not at all."""
    gpu_type: str | None = None
    """Type in the GPU request (h100): --gpus-per-node=h100:8."""
    switches: str | None = None
    """Switches at most, and the longest wait for them: N[@time]. --switches"""
    nice: Annotated[int, Field(ge=-2147483645, le=2147483645)] | None = None
    """Adjustment of the priority; positive is later. --nice"""
    comment: str | None = None
    """Text added to the job comment. --comment"""
    mail_type: str | None = None
    """Events that are mailed (END,FAIL). --mail-type"""
    mail_user: str | None = None
    """Who gets the mail. --mail-user"""
    restart: Literal["requeue", "chain", "auto"] = "auto"
    """How an interrupted run goes on: scontrol requeue, a singleton chain of follow-up jobs, or what works here."""
    chain_length: PositiveInt = 4
    """Follow-up jobs queued in chain mode."""
    signal_lead_minutes: PositiveInt | None = None
    """Minutes before the time limit at which Slurm signals the agents (--signal=USR1@N); null takes the plan's."""
    setup: TextList = ()
    """Shell lines before anything else in every job: modules, conda, environment variables."""
    container: TextList = ()
    """srun options of the site's container (--container-image=..., --container-mounts=...)."""
    python: str | None = None
    """Interpreter of the jobs; null takes the one that submits."""
    extra: dict[str, str | int | bool] = Field(default_factory=dict)
    """Further sbatch options by name (without --); true stands for a bare flag. Applied last."""


class CastConfig(Section):
    """fp8 to bf16, an array over the safetensors files."""

    num_tasks: PositiveInt = 16
    """Array tasks."""
    workers: PositiveInt = 4
    """Worker processes of a task."""
    max_parallel: PositiveInt | None = None
    """Tasks that run at once; null is no limit."""
    cpus_per_task: PositiveInt = 16
    """Cores of a task. --cpus-per-task"""
    memory_gib: Gibibytes = 64
    """Memory of a task, GiB. --mem"""
    time_limit: Minutes = 240
    """Time limit of a task. --time"""


class ConvertConfig(Section):
    """Hugging Face to torch_dist, an array of independent tasks. The default slices are the recipe's PP8 x EP4."""

    num_tasks: PositiveInt = 4
    """Array tasks: the recipe's 4 nodes."""
    pipeline_model_parallel_size: PositiveInt = 8
    """Pipeline slices."""
    expert_model_parallel_size: PositiveInt = 4
    """Expert slices of each pipeline slice."""
    decoder_first_pipeline_num_layers: PositiveInt | None = 7
    """Layers of the first slice."""
    decoder_last_pipeline_num_layers: PositiveInt | None = 6
    """Layers of the last slice."""
    balance: Literal["layout", "bytes"] = "layout"
    """How tensors are dealt to slices: by the layout above, or in equal bytes whatever the layers."""
    tensor_chunks: PositiveInt | None = None
    """Chunks of a tensor along the axis that tensor parallelism splits; null takes the train job's size. Any size loads
    any number; with its own each rank reads just what it keeps."""
    workers: PositiveInt | None = None
    """Worker processes of a task; null is one a slice, at most cpus_per_task."""
    recheck: bool = True
    """Read every file again before publishing and compare hashes: a flipped bit would load without a word."""
    max_parallel: PositiveInt | None = None
    """Tasks that run at once; null is no limit."""
    cpus_per_task: PositiveInt = 32
    """Cores of a task. --cpus-per-task"""
    memory_gib: Gibibytes = 256
    """Memory of a task, GiB. --mem"""
    time_limit: Minutes = 480
    """Time limit of a task. --time"""


class RunConfig(Section):
    """The run's name, place and budget."""

    name: RunName
    """Job name and directory name."""
    root: str
    """Directory of run directories, on the file system that all nodes share; the run lives in ROOT/NAME."""
    seed: Seed = 1234
    """Seed of model initialisation and engines."""
    file_system_gbps: GigabytesPerSecond = 20.0
    """Aggregate write speed of the shared file system, GB/s (10^9 bytes); save times in the plan follow from it."""
    mean_hours_between_interruptions: Hours = 24.0
    """Hours between preemptions, walltimes and failures; the advised save interval follows from it."""
    max_crashes: PositiveInt = 3
    """Attempts without progress before the run is held for a person: of crashes, and of lost or bad nodes."""
    max_interruptions: PositiveInt = 20
    """Attempts without progress that were preempted or ran out of time, before the run is held for a person."""
    expected_rollout_minutes: NonNegativeFloat | None = None
    """Minutes of one iteration, once measured; the plan's estimate of exposure uses it."""
    canary: Literal["auto", "always", "never"] = "auto"
    """Whether a few layers of the model first go through two iterations on the job's own hosts, with the run's own
    arguments: once for each configuration, model and version of the libraries. auto does it with GPUs on 2 or more
    nodes."""
    canary_max_mismatch: PositiveFloat | None = None
    """Mean difference of engine and trainer in log-probs that the canary bears; null takes what their precisions do."""
