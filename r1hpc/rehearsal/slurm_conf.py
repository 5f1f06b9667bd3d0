"""The texts of slurm.conf, gres.conf, cgroup.conf and slurmdbd.conf, for the installed version of Slurm.

Pure functions. Run with Slurm 22.05; what later releases change is taken from their change logs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import Node, Topology
from r1hpc.rehearsal.version import SlurmVersion

GPU_TYPE = "h100"

# 23.11 removed the plugins named `none` and cgroup.conf's CgroupAutomount, and has PreemptParameters.
RELEASE_WITHOUT_NONE_PLUGINS = SlurmVersion(23, 11)
# Before 24.05 some builds have no `disabled`; their cgroup/v1 touches nothing while no other plugin asks it to.
RELEASE_WITH_CGROUP_DISABLED = SlurmVersion(24, 5)
# Until 25.11 a requeued job waits for cred_expire; then it has an option of its own.
RELEASE_WITH_REQUEUE_DELAY = SlurmVersion(25, 11)


@dataclass(frozen=True)
class ConfInputs:
    """All that the configuration files are a function of."""

    spec: ClusterSpec
    kind: Kind
    layout: Layout
    topology: Topology
    version: SlurmVersion
    host_name: str
    """Name of this host, on which slurmctld runs."""
    user: str
    """Who runs the daemons."""
    first_job_id: int
    """Differs between clusters, so that files named after a job id do not meet."""


def write_conf(inputs: ConfInputs) -> None:
    """Write every configuration file, and the device files that stand for GPUs."""
    layout = inputs.layout
    devices = layout.directory / "devices"
    for index in range(inputs.spec.gpus_per_node):
        # slurmd wants a character device; a link to this one needs no privilege to make.
        (devices / f"gpu{index}").symlink_to("/dev/null")
    etc = layout.slurm_conf.parent
    (etc / "slurm.conf").write_text(slurm_conf(inputs))
    (etc / "gres.conf").write_text(gres_conf(inputs))
    (etc / "cgroup.conf").write_text(cgroup_conf(inputs.version))
    # Named in slurm.conf so that the system's plugins of srun are not read.
    (etc / "plugstack.conf").write_text("")
    if inputs.spec.accounting:
        dbd = etc / "slurmdbd.conf"
        dbd.touch(mode=0o600)  # slurmdbd refuses a file that others can read
        dbd.write_text(slurmdbd_conf(inputs))


def slurm_conf(inputs: ConfInputs) -> str:
    """Return the text of slurm.conf."""
    sections = (_controller(inputs), _plugins(inputs), _scheduling(inputs), _accounting(inputs), _nodes(inputs))
    return "\n".join(line for section in sections for line in section) + "\n"


def gres_conf(inputs: ConfInputs) -> str:
    """Return the text of gres.conf: on every node the same device files."""
    devices = inputs.layout.directory / "devices"
    last = inputs.spec.gpus_per_node - 1
    files = devices / ("gpu0" if last == 0 else f"gpu[0-{last}]")
    return f"AutoDetect=off\nNodeName={_node_range(inputs.topology.nodes)} Name=gpu Type={GPU_TYPE} File={files}\n"


def cgroup_conf(version: SlurmVersion) -> str:
    """Return the text of cgroup.conf: no cgroup is used, but slurmd loads the plugin all the same."""
    if version >= RELEASE_WITH_CGROUP_DISABLED:
        return "CgroupPlugin=disabled\n"
    if version >= RELEASE_WITHOUT_NONE_PLUGINS:
        return "CgroupPlugin=cgroup/v1\n"
    return "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"


def slurmdbd_conf(inputs: ConfInputs) -> str:
    """Return the text of slurmdbd.conf."""
    layout, topology = inputs.layout, inputs.topology
    return (
        "\n".join(
            [
                "AuthType=auth/munge",
                f"AuthInfo=socket={layout.munge_socket}",
                "DbdHost=localhost",
                "DbdAddr=127.0.0.1",
                f"DbdPort={topology.dbd_port}",
                f"SlurmUser={inputs.user}",
                f"LogFile={layout.log('slurmdbd')}",
                f"PidFile={layout.directory}/run/slurmdbd.pid",
                "StorageType=accounting_storage/mysql",
                "StorageHost=127.0.0.1",
                f"StoragePort={topology.database_port}",
                "StorageUser=slurm",
                # The database listens on this host's loopback only and dies with the cluster.
                "StoragePass=slurm",
                "StorageLoc=slurm_acct_db",
            ]
        )
        + "\n"
    )


def _controller(inputs: ConfInputs) -> list[str]:
    layout, topology = inputs.layout, inputs.topology
    directory: Path = layout.directory
    return [
        f"ClusterName={layout.cluster_name}",
        f"SlurmctldHost={inputs.host_name}({topology.controller_address})",
        f"SlurmctldPort={topology.controller_port}",
        f"SlurmUser={inputs.user}",
        f"SlurmdUser={inputs.user}",
        "AuthType=auth/munge",
        f"AuthInfo=socket={layout.munge_socket},cred_expire={inputs.spec.cred_expire_s}",
        f"StateSaveLocation={directory}/state",
        f"SlurmdSpoolDir={directory}/spool/%n",
        f"SlurmctldPidFile={directory}/run/slurmctld.pid",
        f"SlurmdPidFile={directory}/run/slurmd.%n.pid",
        f"SlurmctldLogFile={layout.log('slurmctld')}",
        f"SlurmdLogFile={directory}/log/slurmd.%n.log",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        f"PlugStackConfig={directory}/etc/plugstack.conf",
        f"FirstJobId={inputs.first_job_id}",
        f"MaxArraySize={inputs.spec.max_array_size}",
    ]


def _plugins(inputs: ConfInputs) -> list[str]:
    lines = [
        "ProctrackType=proctrack/linuxproc",
        "MpiDefault=none",
        "GresTypes=gpu",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        # The host has fewer CPUs and less memory than its nodes claim to have.
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
    ]
    if inputs.version < RELEASE_WITHOUT_NONE_PLUGINS:
        lines += ["TaskPlugin=task/none", "JobAcctGatherType=jobacct_gather/none"]
    if inputs.kind is Kind.LOOPBACK:
        # mpi/pmix keeps files there under a name that every node of one host would share.
        lines.append(f"TmpFS={inputs.layout.directory}/tmp/%n")
    return lines


def _scheduling(inputs: ConfInputs) -> list[str]:
    spec = inputs.spec
    quick = ["bf_interval=5", "sched_interval=5", "batch_sched_delay=0", "sched_min_interval=0"]
    if inputs.version >= RELEASE_WITH_REQUEUE_DELAY:
        quick.append(f"requeue_delay={spec.cred_expire_s}")
    lines = [
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={','.join(quick)}",
        "PriorityType=priority/basic",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "JobRequeue=1",
        "CompleteWait=0",
        "MinJobAge=300",
        f"KillWait={spec.kill_wait_s}",
        f"SlurmdTimeout={spec.slurmd_timeout_s}",
        f"MessageTimeout={spec.message_timeout_s}",
        "SlurmctldTimeout=30",
        "UnkillableStepTimeout=20",
    ]
    if spec.preempt_send_user_signal:
        lines.append(
            "PreemptParameters=send_user_signal"
            if inputs.version >= RELEASE_WITHOUT_NONE_PLUGINS
            else "SlurmctldParameters=preempt_send_user_signal"
        )
    return lines


def _accounting(inputs: ConfInputs) -> list[str]:
    if not inputs.spec.accounting:
        # Named where it exists: GPUs as a TRES would need slurmdbd, and slurmctld exits without it.
        without_plugin = inputs.version >= RELEASE_WITHOUT_NONE_PLUGINS
        return [] if without_plugin else ["AccountingStorageType=accounting_storage/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={inputs.topology.dbd_port}",
        f"AccountingStoragePass={inputs.layout.munge_socket}",
        "AccountingStorageTRES=gres/gpu",
    ]


def _nodes(inputs: ConfInputs) -> list[str]:
    spec = inputs.spec
    # A loopback node shares the host's name, and slurmd looks itself up by it.
    host_name = f" NodeHostname={inputs.host_name}" if inputs.kind is Kind.LOOPBACK else ""
    resources = (
        f"CPUs={spec.cpus_per_node} Boards=1 SocketsPerBoard=1 CoresPerSocket={spec.cpus_per_node} ThreadsPerCore=1 "
        f"RealMemory={spec.memory_mib} Gres=gpu:{GPU_TYPE}:{spec.gpus_per_node} State=UNKNOWN"
    )
    nodes = [
        f"NodeName={node.name}{host_name} NodeAddr={node.address} Port={node.port} {resources}"
        for node in inputs.topology.nodes
    ]
    common = "Nodes=ALL MaxTime=INFINITE State=UP"
    return [
        *nodes,
        f"PartitionName=low {common} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={spec.grace_s}",
        f"PartitionName=high {common} Default=NO PriorityTier=10 PreemptMode=OFF",
    ]


def _node_range(nodes: tuple[Node, ...]) -> str:
    first, last = nodes[0].name, nodes[-1].name
    return first if first == last else f"node[{first.removeprefix('node')}-{last.removeprefix('node')}]"
