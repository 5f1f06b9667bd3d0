"""What `submit` does, in order: understand, check, queue, follow."""

from __future__ import annotations

import time

from r1hpc.cluster.slurm import SlurmClient, outside_any_job
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.plan import render_plan
from r1hpc.submit import checks, dry_run, local
from r1hpc.submit.certain_failures import certain_failures
from r1hpc.submit.follow import follow
from r1hpc.submit.live import claimed
from r1hpc.submit.order import Options, Order, Say, take_order
from r1hpc.submit.parameters import python
from r1hpc.submit.pipeline import SubmittedJob, record
from r1hpc.submit.prepare import prepare
from r1hpc.submit.stages import TRAIN
from r1hpc.submit.to_slurm import submit_to_slurm


def submit(options: Options, say: Say) -> None:
    """Carry the command out. Raises R1hpcError with everything that is wrong."""
    order = take_order(options, say)
    if options.dry_run:
        dry_run.show(order, say)
    elif options.prepare:
        _prepare_only(order, say)
    elif not order.stages:
        say("every stage is complete: nothing to submit")
    else:
        _queue(order, say)


def _prepare_only(order: Order, say: Say) -> None:
    restart = "requeue" if order.config.slurm.restart == "auto" else order.config.slurm.restart
    own_job = order.options.own_job
    with claimed([order.directory], SlurmClient(), own_job):
        prepare(
            order.config,
            order.plan,
            restart,
            again=order.options.again,
            signal_lead_s=order.options.signal_lead,
        )
        if own_job is not None:
            # Nothing else names a job that was started by hand before it marks itself.
            record(order.directory, [SubmittedJob(TRAIN.name, own_job, 1, time.time())])
    say(str(order.directory.root))


def _queue(order: Order, say: Say) -> None:
    say(render_plan(order.plan))
    problems = checks.code_problems(order.stages) + checks.input_problems(order.config, order.stages)
    problems += certain_failures(order, say)
    if problems:
        raise SubmitError("\n".join(problems))
    client = SlurmClient()
    if _use_slurm(order.options.cluster, client, say):
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
    with claimed([directory], client):
        prepared = prepare(order.config, order.plan, "requeue")
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


def _use_slurm(cluster: str, client: SlurmClient, say: Say) -> bool:
    """Whether to submit to Slurm. Raises ClusterError when it was asked for and is not there or does not answer."""
    if cluster == "local":
        return False
    if not client.present():
        if cluster == "slurm":
            raise ClusterError("--cluster slurm: sbatch is not on PATH; load the site's module or use --cluster local")
        say("note: no Slurm here (sbatch is not on PATH): running on this host")
        return False
    try:
        client.config()
    except ClusterError as error:
        if cluster == "slurm":
            raise ClusterError(f"--cluster slurm: Slurm is installed but does not answer: {error}") from error
        say(f"note: Slurm does not answer, running on this host ({error})")
        return False
    return True
