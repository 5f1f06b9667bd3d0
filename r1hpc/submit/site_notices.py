"""What is said of a site before anything is queued: nothing of it stops a submit, all of it can surprise later."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from r1hpc import exit_codes
from r1hpc.cluster.slurm import SlurmClient, profile_variable
from r1hpc.config import Config
from r1hpc.rundir import RunDir
from r1hpc.submit.parameters import HOME, python

_OUR_CODES = {
    exit_codes.CRASHED: "the attempt failed",
    exit_codes.INVALID: "the configuration is wrong",
    exit_codes.STOP_REQUESTED: "asked to stop",
    exit_codes.PREFLIGHT_FAILED: "a node failed the preflight",
    exit_codes.BRING_UP_FAILED: "Ray did not come up",
    exit_codes.NODE_LOST: "a node was lost",
    exit_codes.OUT_OF_TIME: "out of time",
    exit_codes.CANARY_FAILED: "the canary failed",
    exit_codes.SRUN_LAUNCH_FAILED: "srun could not launch",
}
_MOUNTS = "--container-mounts"


def slurm_notices(config: Config, client: SlurmClient) -> list[str]:
    """What this Slurm's settings do to a run. Raises ClusterError where Slurm does not answer."""
    return [*_suspending(config, client), *_requeueing(client.config())]


def plain_notices(config: Config, directory: RunDir) -> list[str]:
    """What can be said without Slurm: paths that a container does not have, and an engine that is open to others."""
    return [*_unmounted(config, directory), *_exposed(config)]


def _suspending(config: Config, client: SlurmClient) -> list[str]:
    names = config.slurm.partition or os.environ.get(profile_variable("partition"))
    return [
        f"partition {fields.get('PartitionName')}: PreemptMode={fields['PreemptMode']}, so a preempted job is stopped "
        "where it stands: it keeps its GPU memory, and when it goes on its engines, Ray and NCCL have timed out, which "
        "counts as a crash or a lost node; ask for a partition with PreemptMode=REQUEUE"
        for fields in client.partitions(names)
        if {"SUSPEND", "GANG"} & set(fields.get("PreemptMode", "").split(","))
    ]


def _requeueing(settings: dict[str, str]) -> list[str]:
    what = {"RequeueExit": "requeues", "RequeueExitHold": "holds"}
    notices = []
    for key, does in what.items():
        ours = sorted(_codes(settings.get(key, "")) & set(_OUR_CODES))
        if ours:
            told = ", ".join(f"{code} ({_OUR_CODES[code]})" for code in ours)
            notices.append(
                f"{key} = {settings[key]} of this Slurm (scontrol show config): it {does} a job by itself that leaves "
                f"with {told}, whatever this run's own decision was; ask the administrator to take those codes out"
            )
    return notices


def _codes(text: str) -> set[int]:
    """1,64-66: as slurm.conf lists exit codes; nothing for (null)."""
    codes: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            codes |= set(range(int(first), int(last if last.isdigit() else first) + 1))
    return codes


def _unmounted(config: Config, directory: RunDir) -> list[str]:
    mounts = _mounts(config.slurm.container)
    if mounts is None:
        return []
    needed = {"the checkout": str(HOME), "the run directory": str(directory.root)}
    needed |= {key: value for key, value in _inputs(config).items() if value is not None}
    if config.slurm.python is None:
        # Inside the image it would be another Python, or none.
        needed["the interpreter (slurm.python is not set)"] = python(config)
    missing = {what: path for what, path in needed.items() if not any(_is_below(path, mount) for mount in mounts)}
    return [
        f"{what}, {path}, lies under no target of {_MOUNTS} ({', '.join(mounts)}): unless the image or the site has it "
        f"there, the jobs do not find it; add {path}:{path} to {_MOUNTS} in slurm.container, or move it"
        for what, path in missing.items()
    ]


def _mounts(options: Sequence[str]) -> list[str] | None:
    """The targets inside the container, SOURCE[:TARGET[:FLAGS]] each; None where no option says any."""
    values = [option.partition("=")[2] for option in options if option.startswith(f"{_MOUNTS}=")]
    values += [value for option, value in itertools.pairwise(options) if option == _MOUNTS]
    if not values:
        return None
    found = [mount.split(":") for value in values for mount in value.split(",") if mount]
    return [parts[1] if len(parts) > 1 else parts[0] for parts in found]


def _inputs(config: Config) -> dict[str, str | None]:
    ckpt = config.ckpt
    return {
        "ckpt.hf_checkpoint": ckpt.hf_checkpoint,
        "ckpt.bf16_checkpoint": ckpt.bf16_checkpoint,
        "ckpt.ref_load": ckpt.ref_load,
        "ckpt.load": ckpt.load,
        "ckpt.save": ckpt.save,
        "rollout.prompt_data": config.rollout.prompt_data.partition("@[")[0],
    }


def _is_below(path: str, mount: str) -> bool:
    return PurePosixPath(os.path.normpath(path)).is_relative_to(PurePosixPath(os.path.normpath(mount)))


def _exposed(config: Config) -> list[str]:
    gpus, per_host = config.sglang.rollout_num_gpus_per_engine, config.hosts.gpus_per_node
    if gpus <= per_host or not config.sglang.enable_dp_attention:
        return []
    return [
        f"sglang.rollout_num_gpus_per_engine = {gpus} is more than a host's {per_host} GPUs, with enable_dp_attention: "
        "SGLang then takes pickles over TCP at the address of each engine's first host, on ports outside of "
        "hosts.port_base too, and whoever reaches that address can run code as you; only on whole nodes, in a network "
        "that other users' jobs do not reach (docs/slurm.md, For the administrator)"
    ]
