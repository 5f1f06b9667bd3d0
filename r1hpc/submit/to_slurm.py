"""Queueing an order in Slurm: the site's limits, the run directory, the chain of jobs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.errors import SubmitError
from r1hpc.publish import publish_text
from r1hpc.submit import checks, site_notices
from r1hpc.submit.order import Order, Say
from r1hpc.submit.pipeline import SubmittedJob, record, submit_chain
from r1hpc.submit.prepare import prepare
from r1hpc.submit.requests import StageJob, Submission
from r1hpc.submit.stages import TRAIN


def submit_to_slurm(order: Order, client: SlurmClient, say: Say) -> list[SubmittedJob]:
    """Queue the stages; nothing of the order's runs may be live. Raises R1hpcError."""
    config, directory = order.config, order.directory
    hosts = order.hosts
    if hosts:
        hosts = checks.node_names_of(hosts, client, f"hosts.hostfile = {config.hosts.hostfile}")
    pinned = checks.choose_hosts(hosts, config)
    _refuse_large_arrays(order, client)
    restart, notice = checks.restart_mode(config, client)
    if notice:
        say(f"note: {notice}")
    for text in site_notices.slurm_notices(config, client):
        say(f"note: {text}")
    for text in site_notices.plain_notices(config, directory):
        say(f"note: {text}")
    prepared = prepare(config, order.plan, restart, pinned=hosts, command=order.options.command)
    for text in prepared.notices:
        say(f"note: {text}")
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    submission = Submission(config, prepared.run_id, directory, stamp, order.plan.signal_lead_s, restart, pinned)
    jobs = [submission.job(stage) for stage in order.stages]
    if order.elements:
        jobs[-1] = _sweep(order, submission, hosts, say)
    chain = config.slurm.chain_length if restart == "chain" and order.stages[-1] is TRAIN else 0
    record(directory, [])  # from now on only Slurm can say whether something of the run is live
    return submit_chain(jobs, directory, client, chain, run_id=prepared.run_id, say=say)


def _refuse_large_arrays(order: Order, client: SlurmClient) -> None:
    sizes = {
        f"{stage.name}.num_tasks": getattr(order.config, stage.name).num_tasks
        for stage in order.stages
        if stage.name in ("cast", "convert")
    }
    if order.elements:
        sizes["--sweep"] = len(order.elements)
    problems = checks.array_problems(client, sizes)
    if problems:
        raise SubmitError("\n".join(problems))


def _sweep(order: Order, submission: Submission, hosts: Sequence[str], say: Say) -> StageJob:
    """Prepare the run directory of each element, and the array over them."""
    for number, element in enumerate(order.elements):
        prepared = prepare(
            element.config,
            element.plan,
            submission.restart,
            pinned=hosts,
            sweep_of=submission.run_id,
            command=element.command,
        )
        say(f"sweep {number}: {' '.join(element.overrides)} -> {element.directory.root}")
        for text in prepared.notices:
            say(f"note: sweep {number}: {text}")
    directories = [element.directory for element in order.elements]
    index = submission.directory.sweep_index
    publish_text(index, "".join(f"{directory.root}\n" for directory in directories))
    return submission.sweep_job(order.stages[-1], directories, index)
