"""What must hold before anything is queued: inputs on disk, the site's limits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from r1hpc.cluster.nodeset import expand
from r1hpc.cluster.slurm import SlurmClient, profile_variable
from r1hpc.config import Config
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.submit.stages import Stage


def input_problems(config: Config, stages: Iterable[Stage]) -> list[str]:
    """Inputs of these stages that are not there or cannot be read, and that no earlier stage of them writes."""
    names = [stage.name for stage in stages]
    runs = "train" in names or "canary" in names
    problems = []
    if "cast" in names or ("convert" in names and config.ckpt.bf16_checkpoint is None) or runs:
        problems += _directory("ckpt.hf_checkpoint", config.ckpt.hf_checkpoint)
    if "convert" in names and "cast" not in names and config.ckpt.bf16_checkpoint is not None:
        problems += _directory("ckpt.bf16_checkpoint", config.ckpt.bf16_checkpoint)
    if "train" in names and "convert" not in names and config.ckpt.ref_load is not None:
        problems += _directory("ckpt.ref_load", config.ckpt.ref_load)
    if runs:
        problems += _file("rollout.prompt_data", config.rollout.prompt_data.partition("@[")[0])
    return problems


def code_problems(stages: Iterable[Stage]) -> list[str]:
    """Stages whose job this version does not have."""
    return [
        f"stage {stage.name}: this version has no {stage.job.partition(':')[0]}; leave it out (--stage preflight)"
        for stage in stages
        if not stage.available
    ]


def array_problems(client: SlurmClient, sizes: dict[str, int]) -> list[str]:
    """Arrays larger than the site allows; `sizes` maps the configuration key to the number of tasks."""
    settings = client.config()
    limits = {"MaxArraySize": int(settings.get("MaxArraySize", "1001"))}
    parameters = dict(word.partition("=")[::2] for word in settings.get("SchedulerParameters", "").split(","))
    if parameters.get("max_array_tasks", "").isdigit():
        limits["SchedulerParameters max_array_tasks"] = int(parameters["max_array_tasks"])
    name, limit = min(limits.items(), key=lambda item: item[1])
    return [
        f"{key} = {count}: this Slurm has {name} = {limit}, so an array has at most {limit} tasks "
        f"(scontrol show config); set {key} <= {limit}"
        for key, count in sizes.items()
        if count > max(limit, 1)  # one task is submitted as a plain job
    ]


def restart_mode(config: Config, client: SlurmClient) -> tuple[str, str | None]:
    """("requeue" or "chain", a notice): what an interruption leads to at this site.

    Where PreemptMode is CANCEL, --requeue does not bring a preempted job back: follow-up jobs queued in advance do.
    A site's JobRequeue=0 does not matter: it is the default of jobs that do not say, and ours say --requeue.
    """
    if config.slurm.restart != "auto":
        return config.slurm.restart, None
    partitions = client.partitions(config.slurm.partition or os.environ.get(profile_variable("partition")))
    for fields in partitions:
        mode = fields.get("PreemptMode", "OFF")
        if "CANCEL" in mode:
            notice = (
                f"partition {fields.get('PartitionName')}: PreemptMode={mode}, so a preempted job does not come back; "
                f"queueing a chain of {config.slurm.chain_length} follow-up jobs instead (slurm.restart = chain)"
            )
            return "chain", notice
    if not partitions:
        return "requeue", (
            "slurm.partition is not set and this Slurm has no default partition, so unless the site chooses one, "
            "sbatch refuses; whether preempted jobs come back there cannot be seen: taking slurm.restart = requeue"
        )
    if client.config().get("PreemptType") == "preempt/qos":
        return "requeue", (
            "PreemptType=preempt/qos: whether a preempted job comes back depends on its QOS (sacctmgr show qos "
            "format=name,preemptmode); taking slurm.restart = requeue, set chain where the QOS says cancel"
        )
    return "requeue", None


def node_names_of(hosts: Sequence[str], client: SlurmClient, where: str) -> list[str]:
    """The NodeNames of hosts given by address or name, in the same order. Raises ClusterError naming the unknown."""
    known = client.node_names()
    unknown = [host for host in hosts if host not in known]
    if unknown:
        raise ClusterError(
            f"{where}: Slurm knows no node by {', '.join(unknown)} (neither NodeName, NodeHostName nor NodeAddr of "
            "scontrol show node); write the NodeNames"
        )
    return [known[host] for host in hosts]


def choose_hosts(hosts: Sequence[str], config: Config) -> list[str]:
    """The first num_nodes of a hostfile's hosts that slurm.exclude leaves; more lines are spares; [] stays [].

    Raises SubmitError when too few are left: a node that is asked for and excluded would pend for ever.
    """
    excluded = set(expand(config.slurm.exclude)) if config.slurm.exclude else set()
    left = [host for host in hosts if host not in excluded]
    if hosts and len(left) < config.hosts.num_nodes:
        raise SubmitError(
            f"hosts.hostfile = {config.hosts.hostfile}: {len(hosts)} hosts, {len(hosts) - len(left)} of them in "
            f"slurm.exclude = {config.slurm.exclude}: {len(left)} are left for hosts.num_nodes = "
            f"{config.hosts.num_nodes}; add spare lines or exclude fewer"
        )
    return left[: config.hosts.num_nodes]


# os.path, not pathlib: Path.is_dir raises where a directory above is closed.


def _directory(key: str, value: str) -> list[str]:
    if os.access(value, os.R_OK | os.X_OK) and os.path.isdir(value):
        return []
    return [f"{key} = {value}: {_what_is_wrong(value, 'directory')}"]


def _file(key: str, value: str) -> list[str]:
    if os.access(value, os.R_OK) and os.path.isfile(value):
        return []
    return [f"{key} = {value}: {_what_is_wrong(value, 'file')}; every node reads it from there"]


def _what_is_wrong(value: str, kind: str) -> str:
    try:
        os.stat(value)
    except PermissionError:
        return "permission denied"
    except OSError:
        return f"no such {kind}"
    is_kind = os.path.isdir(value) if kind == "directory" else os.path.isfile(value)
    return "permission denied" if is_kind else f"not a {kind}"
