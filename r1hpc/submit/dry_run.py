"""--dry-run: the plan and the exact sbatch texts, nothing written, no Slurm needed."""

from __future__ import annotations

from r1hpc.plan import render_plan
from r1hpc.submit import changes, checks, site_notices
from r1hpc.submit.certain_failures import certain_failures
from r1hpc.submit.order import ALL_COMPLETE, Order, Say
from r1hpc.submit.requests import StageJob, Submission
from r1hpc.submit.stages import Stage


def show(order: Order, say: Say) -> None:
    """Print what would be submitted; what only the site's Slurm knows is left open: job ids, the restart mode."""
    config, directory = order.config, order.directory
    say(render_plan(order.plan))
    restart = "requeue" if config.slurm.restart == "auto" else config.slurm.restart
    pinned = checks.choose_hosts(order.hosts, config)
    run_id = f"{config.run.name}-dryrun"
    submission = Submission(config, run_id, directory, "dry-run", order.plan.signal_lead_s, restart, pinned)
    for number, element in enumerate(order.elements):
        say(f"sweep {number}: {' '.join(element.overrides)} -> {element.directory.root}")
    previous = None
    for stage in order.stages:
        say(f"\n===== {stage.name}: sbatch {directory.sbatch / (stage.name + '.sh')} =====")
        if not stage.available:
            say(f"(not in this version: {stage.job.partition(':')[0]})")
        job = _job(order, submission, stage)
        say(job.text(f"afterok:<{previous}>" if previous else None))
        previous = stage.name
    for problem in checks.input_problems(config, order.stages):
        say(f"note: {problem}")
    for problem in certain_failures(order, say):
        say(f"note: {problem}")
    for notice in site_notices.plain_notices(config, directory):
        say(f"note: {notice}")
    for notice in changes.changed(config, directory):
        say(f"note: {notice}")
    say("dry run: nothing was submitted" if order.stages else ALL_COMPLETE)


def _job(order: Order, submission: Submission, stage: Stage) -> StageJob:
    if not order.elements or stage is not order.stages[-1]:
        return submission.job(stage)
    directories = [element.directory for element in order.elements]
    return submission.sweep_job(stage, directories, submission.directory.sweep_index)
