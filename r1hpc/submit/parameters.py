"""A stage's sbatch options and shell lines, under the names of submitit's Slurm executor."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.cluster.nodeset import fold
from r1hpc.config import Config

HOME = Path(__file__).resolve().parents[2]
"""The directory that holds r1hpc/, jobs/ and sbatch/."""

_HOOKS = f". {shlex.quote(str(HOME / 'sbatch' / 'hooks.sh'))}"

UNSENT_SIGNAL = "RTMAX"
"""submitit requeues by itself on its own signal; pointed at one that nobody sends, the decision stays ours."""


@dataclass(frozen=True)
class JobRequest:
    """Everything about one job but the code that it runs."""

    stage: str
    run_id: str
    run_dir: str
    """The run directory; for an array of runs a shell expression that picks the element's own."""
    logs: str
    signal_lead_s: int
    requeue: bool
    dependency: str | None = None
    hosts: Sequence[str] = ()
    """NodeNames asked for by name; empty leaves the choice to Slurm."""


def job_name(run_id: str, stage: str) -> str:
    """The name that squeue shows; a singleton chain serialises by it, so it must be this run's alone."""
    return f"r1hpc-{run_id}-{stage}"


def array_parameters(config: Config, request: JobRequest) -> dict[str, Any]:
    """Options of cast or convert: independent tasks of one node each, restartable one by one."""
    section = config.cast if request.stage == "cast" else config.convert
    parameters = _common(config, request) | {
        "time": section.time_limit,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": section.cpus_per_task,
        "mem": f"{math.ceil(section.memory_gib * 1024)}M",
        "array_parallelism": section.max_parallel or section.num_tasks,
        "srun_args": [*_step_output(f"{request.logs}/{request.stage}-%A_%a.log"), *config.slurm.container],
        "setup": [*config.slurm.setup, *_exports(config, request.run_dir), _HOOKS, "r1hpc_element_begin"],
        "teardown": ["rc=$?", "r1hpc_element_end $rc", "exit $rc"],
    }
    parameters["additional_parameters"]["output"] = f"{request.logs}/{request.stage}-%A_%a.log"
    # submitit always asks for a signal, and its own (USR2) would kill the task; this one is ignored by default.
    parameters["additional_parameters"]["signal"] = "URG@60"
    return _with_extra(config, parameters)


def train_parameters(config: Config, request: JobRequest, is_array: bool = False) -> dict[str, Any]:
    """Options of the train job: one gang of whole nodes, one task a node."""
    hosts, slurm = config.hosts, config.slurm
    log = f"{request.logs}/{request.stage}-{'%A_%a' if is_array else '%j'}"
    step = [f"--nodes={hosts.num_nodes}", f"--ntasks={hosts.num_nodes}", *slurm.container]
    # Agents leave together; --wait ends a step that some agent never leaves. One task is not bound to one core.
    main = [*_step_output(f"{log}-%t.log"), "--ntasks-per-node=1", "--kill-on-bad-exit=0", "--wait=120"]
    main.append("--cpu-bind=none")
    preflight = ["r1hpc_preflight", str(hosts.preflight_timeout_s), f"--mpi={hosts.mpi}", *step]
    parameters = _common(config, request) | {
        "time": slurm.time_limit,
        "nodes": hosts.num_nodes,
        "ntasks_per_node": 1,
        "srun_args": [*main, *step],
        "setup": [
            *slurm.setup,
            *_exports(config, request.run_dir),
            _HOOKS,
            "r1hpc_begin",
            shlex.join(preflight),
        ],
        "teardown": ["rc=$?", "r1hpc_end $rc", "exit $rc"],
    }
    parameters |= _whole_node(config) | _gpus(config)
    if request.hosts:
        parameters["nodelist"] = fold(request.hosts)
    extra = parameters["additional_parameters"]
    extra["output"] = f"{log}.log"
    # No "B:": the agents get it, one a node, and the batch script stays alive for the teardown.
    extra["signal"] = f"USR1@{request.signal_lead_s}"
    return _with_extra(config, parameters)


def _common(config: Config, request: JobRequest) -> dict[str, Any]:
    slurm = config.slurm
    comment = f"r1hpc={request.run_id}" + (f" {slurm.comment}" if slurm.comment else "")
    additional: dict[str, Any] = {"requeue" if request.requeue else "no-requeue": True}
    # Without it a job whose stage before it failed would wait in the queue for ever.
    additional["kill-on-invalid-dep"] = "yes"
    additional |= {"reservation": slurm.reservation} if slurm.reservation else {}
    additional |= {"switches": slurm.switches} if slurm.switches else {}
    additional |= {"nice": slurm.nice} if slurm.nice is not None else {}
    parameters = {
        "job_name": job_name(request.run_id, request.stage),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "mail_type": slurm.mail_type,
        "mail_user": slurm.mail_user,
        "comment": comment,
        "dependency": request.dependency,
        "wckey": None,  # submitit's own default, "submitit", is refused where keys are enforced
        "additional_parameters": additional,
        "stderr_to_stdout": True,
    }
    return {name: value for name, value in parameters.items() if value is not None or name == "wckey"}


def _step_output(path: str) -> list[str]:
    """A step's own log; srun would truncate it after a requeue, whatever sbatch was told."""
    return ["--output", path, "--open-mode=append"]


def _whole_node(config: Config) -> dict[str, Any]:
    """--exclusive alone does not give all memory; --mem=0 does."""
    cpus = config.hosts.cpus_per_node
    if cpus is None:
        return {"exclusive": True, "mem": "0"}
    return {"cpus_per_task": cpus, "mem": f"{math.ceil(config.hosts.host_memory_gib * 1024)}M"}


def _gpus(config: Config) -> dict[str, Any]:
    count, kind = config.hosts.gpus_per_node, config.slurm.gpu_type
    request = f"{kind}:{count}" if kind else str(count)
    if config.slurm.gpus == "gpus-per-node":
        return {"gpus_per_node": request}
    return {"gres": f"gpu:{request}"} if config.slurm.gpus == "gres" else {}


def _exports(config: Config, run_dir: str) -> list[str]:
    """What every job finds in its environment. `run_dir` is shell text already."""
    home = shlex.quote(str(HOME))
    return [
        f"export R1HPC_RUN_DIR={run_dir}",
        f"export R1HPC_HOME={home}",
        f"export R1HPC_PYTHON={shlex.quote(python(config))}",
        f"export PYTHONPATH={home}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export SUBMITIT_PREEMPT_SIGNAL={UNSENT_SIGNAL}",
        # Where sites say --export=NONE it would reach srun too, whose tasks then have no PATH.
        "unset SLURM_EXPORT_ENV",
        # srun does not take --cpus-per-task from sbatch since Slurm 22.05.
        '[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
    ]


def _with_extra(config: Config, parameters: dict[str, Any]) -> dict[str, Any]:
    """slurm.extra comes last: it may overrule anything."""
    flags = {name: value for name, value in config.slurm.extra.items() if value is not False}
    parameters["additional_parameters"] |= flags
    return parameters


def python(config: Config) -> str:
    """The interpreter that the jobs run."""
    return config.slurm.python or sys.executable
