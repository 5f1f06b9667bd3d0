"""What `submit` does, in order: understand, check, queue, follow."""

from __future__ import annotations

import time

from r1hpc.cluster.hydra import hydra_mpiexec
from r1hpc.cluster.slurm import SlurmClient, outside_any_job
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.plan import render_plan
from r1hpc.submit import checks, dry_run, local
from r1hpc.submit.certain_failures import certain_failures
from r1hpc.submit.follow import follow
from r1hpc.submit.live import claimed
from r1hpc.submit.order import ALL_COMPLETE, Options, Order, Say, take_order
from r1hpc.submit.parameters import python
from r1hpc.submit.pipeline import SubmittedJob, record
from r1hpc.submit.prepare import prepare
from r1hpc.submit.stages import TRAIN
from r1hpc.submit.to_slurm import submit_to_slurm


def submit(options: Options, say: Say, answer: Say | None = None) -> None:
    """Carry the command out. Raises R1hpcError with everything that is wrong.

    answer: told the run directory by --prepare, which scripts read, and nothing else; as `say` where it is not given.
    """
    order = take_order(options, say)
    if options.dry_run:
        dry_run.show(order, say)
    elif options.prepare:
        _prepare_only(order, say, answer or say)
    elif not order.stages:
        say(ALL_COMPLETE)
    else:
        _queue(order, say)


def _prepare_only(order: Order, say: Say, answer: Say) -> None:
    restart = "requeue" if order.config.slurm.restart == "auto" else order.config.slurm.restart
    own_job = order.options.own_job
    with claimed([order.directory], SlurmClient(), own_job):
        prepared = prepare(
            order.config,
            order.plan,
            restart,
            again=order.options.again,
            signal_lead_s=order.options.signal_lead,
            command=order.options.command,
        )
        if own_job is not None:
            # Nothing else names a job that was started by hand before it marks itself.
            record(order.directory, [SubmittedJob(TRAIN.name, own_job, 1, time.time())])
    for text in prepared.notices:
        say(f"note: {text}")
    answer(str(order.directory.root))


def _queue(order: Order, say: Say) -> None:
    say(render_plan(order.plan))
    problems = checks.code_problems(order.stages) + checks.input_problems(order.config, order.stages)
    problems += certain_failures(order, say)
    if problems:
        raise SubmitError("\n".join(problems))
    client = SlurmClient()
    if _use_slurm(order, client, say):
        _on_slurm(order, client, say)
    else:
        _on_this_host(order, client, say)


def _on_slurm(order: Order, client: SlurmClient, say: Say) -> None:
    with outside_any_job():
        # The lock is for submitting alone: another submit must hear of the live jobs, not of the one that waits.
        with claimed([order.directory, *(element.directory for element in order.elements)], client):
            jobs = submit_to_slurm(order, client, say)
        for job in jobs:
            say(f"{job.stage}: job {job.job_id}" + (f", {job.num_tasks} tasks" if job.num_tasks > 1 else ""))
        say(f"run directory: {order.directory.root}")
        if order.options.wait:
            follow(jobs, order.directory, client, say, order.options.wait_timeout)
            say("all jobs completed")


def _on_this_host(order: Order, client: SlurmClient, say: Say) -> None:
    if order.options.sweep:
        raise SubmitError("--sweep needs Slurm: without it there is one host for one run at a time")
    directory = order.directory
    if any(stage.name in ("preflight", "train") for stage in order.stages):
        hydra_mpiexec(python(order.config))  # else three attempts would fail of it, hours after the conversion
    with claimed([directory], client):
        prepared = prepare(order.config, order.plan, "requeue", command=order.options.command)
        for text in prepared.notices:
            say(f"note: {text}")
        log = local.log_of(directory)
        start = log.stat().st_size if log.is_file() else 0
        pid = local.start(directory, prepared.run_id, order.stages, python(order.config))
    say(f"running {', '.join(stage.name for stage in order.stages)} on this host: pid {pid}, log {log}")
    say(f"run directory: {directory.root}")
    if order.options.wait:
        local.follow_local(directory, prepared.run_id, pid, say, start, order.options.wait_timeout)
        say("all stages completed")


def _use_slurm(order: Order, client: SlurmClient, say: Say) -> bool:
    """Whether to submit to Slurm. Raises ClusterError where it was asked for, or is needed, and cannot be had."""
    cluster, hosts = order.options.cluster, order.config.hosts
    if cluster == "local":
        return False
    missing = _why_no_slurm(client)
    if missing is None:
        return True
    fixes = "load the site's Slurm (module load slurm), or, to run on this very host, use --cluster local"
    if cluster == "slurm":
        raise ClusterError(f"--cluster slurm: {missing}; {fixes}")
    if hosts.device == "cuda" and hosts.num_nodes > 1:
        raise ClusterError(
            f"{missing}, and this run asks for {hosts.num_nodes} hosts of {hosts.gpus_per_node} GPUs "
            f"(hosts.num_nodes, hosts.device = cuda): {fixes}"
        )
    say(f"note: no Slurm here ({missing}): running on this host")
    return False


def _why_no_slurm(client: SlurmClient) -> str | None:
    if not client.present():
        return "sbatch is not on PATH"
    try:
        client.config()
    except ClusterError as error:
        return f"Slurm is installed but does not answer: {error}"
    return None
