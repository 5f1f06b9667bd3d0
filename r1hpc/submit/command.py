"""What `submit` does, in order: load, plan, check, prepare the run directory, queue, follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1hpc.cluster.hostfile import read_hostfile, require
from r1hpc.cluster.slurm import SlurmClient
from r1hpc.config import Config, LoadedConfig, load_config
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.plan import Plan, render_plan
from r1hpc.plan.plan_for import plan_for
from r1hpc.publish import publish_text
from r1hpc.rundir import RunDir
from r1hpc.submit import checks, local
from r1hpc.submit.follow import follow
from r1hpc.submit.parameters import python
from r1hpc.submit.pipeline import submit_chain
from r1hpc.submit.prepare import PreparedRun, locked, prepare, run_directory
from r1hpc.submit.requests import StageJob, Submission
from r1hpc.submit.stages import BY_NAME, PIPELINE, TRAIN, Stage
from r1hpc.submit.sweep import combinations, element_name

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: str
    site: str | None = None
    overrides: Sequence[str] = ()
    stages: Sequence[str] | None = None
    dry_run: bool = False
    prepare: bool = False
    wait: bool = False
    wait_timeout: float | None = None
    cluster: str = "auto"
    sweep: Sequence[str] = field(default_factory=tuple)


def submit(options: Options, say: Say) -> None:
    """Carry the command out. Raises R1hpcError with everything that is wrong."""
    loaded = load_config(Path(options.config), site=options.site, overrides=options.overrides)
    for notice in loaded.notices:
        say(f"note: {notice}")
    plan = plan_for(loaded)
    hosts = _hosts(loaded)
    stages = _stages(loaded.config, options, say)
    if options.dry_run:
        _dry_run(loaded.config, plan, hosts, stages, options, say)
    elif options.prepare:
        with locked(run_directory(loaded.config)):
            prepared = prepare(loaded.config, plan, _lead_s(loaded.config, plan), _plain_restart(loaded.config))
        say(str(prepared.directory.root))
    elif not stages:
        say("every stage is complete: nothing to submit")
    else:
        _queue(loaded, plan, hosts, stages, options, say)


def _queue(
    loaded: LoadedConfig, plan: Plan, hosts: Sequence[str], stages: Sequence[Stage], options: Options, say: Say
) -> None:
    say(render_plan(plan))
    problems = checks.code_problems(stages) + checks.input_problems(loaded.config, stages)
    if problems:
        raise SubmitError("\n".join(problems))
    client = SlurmClient()
    with locked(run_directory(loaded.config)):
        if _use_slurm(options.cluster, client, say):
            _submit_slurm(loaded, plan, hosts, stages, options, client, say)
        else:
            _submit_local(loaded.config, plan, stages, options, say)


def _stages(config: Config, options: Options, say: Say) -> list[Stage]:
    """The stages asked for, in pipeline order, or the whole pipeline without what is complete already."""
    if options.sweep and options.stages is None:
        return [*(stage for stage in PIPELINE[:-1] if not stage.is_complete(config)), TRAIN]
    if options.stages is not None:
        return [stage for name, stage in BY_NAME.items() if name in options.stages]
    remaining = []
    for stage in PIPELINE:
        if stage.is_complete(config):
            say(f"stage {stage.name}: complete ({stage.output(config)}), left out")
        else:
            remaining.append(stage)
    return remaining


def _hosts(loaded: LoadedConfig) -> list[str]:
    """The hosts of the hostfile, checked against the configuration; [] when Slurm chooses. Spares are left out."""
    hosts = loaded.config.hosts
    if hosts.hostfile == "auto":
        return []
    hostfile = read_hostfile(Path(hosts.hostfile))
    require(hostfile, hosts.num_nodes, hosts.gpus_per_node)
    return [host.name for host in hostfile.hosts[: hosts.num_nodes]]


def _lead_s(config: Config, plan: Plan) -> int:
    minutes = config.slurm.signal_lead_minutes
    return minutes * 60 if minutes is not None else int(plan.signal_lead_s)


def _plain_restart(config: Config) -> str:
    """The restart mode before any Slurm was asked."""
    return "requeue" if config.slurm.restart == "auto" else config.slurm.restart


def _dry_run(
    config: Config, plan: Plan, hosts: Sequence[str], stages: Sequence[Stage], options: Options, say: Say
) -> None:
    say(render_plan(plan))
    directory = run_directory(config)
    submission = Submission(
        config, f"{config.run.name}-dryrun", directory, "dry-run", _lead_s(config, plan), _plain_restart(config), hosts
    )
    previous = None
    for stage in stages:
        if stage is stages[-1] and options.sweep:
            names = [element_name(config.run.name, overrides) for overrides in combinations(options.sweep)]
            job = submission.sweep_job(
                stage, [RunDir(directory.root.parent / name) for name in names], _index(directory)
            )
        else:
            job = submission.job(stage)
        say(f"\n===== {stage.name}: sbatch {directory.sbatch / (stage.name + '.sh')} =====")
        if not stage.available:
            say(f"(not in this version: {stage.job.partition(':')[0]})")
        say(job.text(f"afterok:<{previous}>" if previous else None))
        previous = stage.name
    say("dry run: nothing was submitted")


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


def _submit_slurm(
    loaded: LoadedConfig,
    plan: Plan,
    hosts: Sequence[str],
    stages: Sequence[Stage],
    options: Options,
    client: SlurmClient,
    say: Say,
) -> None:
    config = loaded.config
    if hosts:
        hosts = checks.node_names_of(hosts, client, f"hosts.hostfile = {config.hosts.hostfile}")
    sizes = {f"{stage.name}.num_tasks": getattr(config, stage.name).num_tasks for stage in stages[:-1]}
    problems = checks.array_problems(client, sizes)
    if problems:
        raise SubmitError("\n".join(problems))
    restart, notice = checks.restart_mode(config, client)
    if notice:
        say(f"note: {notice}")
    prepared = _prepared(config, plan, restart, say)
    checks.refuse_live(checks.live_jobs(client, prepared.run_id), prepared.directory.root)
    (prepared.directory.root / "HOLD").unlink(missing_ok=True)
    submission = _submission(config, plan, prepared, restart, hosts)
    jobs = [submission.job(stage) for stage in stages]
    if options.sweep:
        jobs[-1] = _sweep(loaded, plan, restart, submission, stages[-1], options, say)
    chain = config.slurm.chain_length if restart == "chain" and stages[-1] is TRAIN else 0
    submitted = submit_chain(jobs, prepared.directory, client, chain)
    for job in submitted:
        say(f"{job.stage}: job {job.job_id}" + (f", {job.num_tasks} tasks" if job.num_tasks > 1 else ""))
    say(f"run directory: {prepared.directory.root}")
    if options.wait:
        follow(submitted, prepared.directory, client, say, options.wait_timeout)
        say("all jobs completed")


def _submit_local(config: Config, plan: Plan, stages: Sequence[Stage], options: Options, say: Say) -> None:
    if options.sweep:
        raise SubmitError("--sweep needs Slurm: without it there is one host for one run at a time")
    directory = run_directory(config)
    prepared = _prepared(config, plan, "requeue", say)
    pid = local.live_pid(directory, prepared.run_id)
    if pid is not None:
        raise SubmitError(f"the run in {directory.root} is live already: pid {pid}; wait for it, or end it: kill {pid}")
    log = local.log_of(directory)
    start = log.stat().st_size if log.is_file() else 0
    pid = local.start(directory, prepared.run_id, stages, python(config))
    say(f"running {', '.join(stage.name for stage in stages)} on this host: pid {pid}, log {log}")
    say(f"run directory: {directory.root}")
    if options.wait:
        local.follow_local(directory, prepared.run_id, say, start, options.wait_timeout)
        say("all stages completed")


def _prepared(config: Config, plan: Plan, restart: str, say: Say) -> PreparedRun:
    prepared = prepare(config, plan, _lead_s(config, plan), restart)
    for notice in prepared.notices:
        say(f"note: {notice}")
    return prepared


def _submission(config: Config, plan: Plan, prepared: PreparedRun, restart: str, hosts: Sequence[str]) -> Submission:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    return Submission(config, prepared.run_id, prepared.directory, stamp, _lead_s(config, plan), restart, hosts)


def _sweep(
    loaded: LoadedConfig,
    plan: Plan,
    restart: str,
    submission: Submission,
    stage: Stage,
    options: Options,
    say: Say,
) -> StageJob:
    """Prepare one run directory a combination, and the array over them."""
    directories = []
    for overrides in combinations(options.sweep):
        name = element_name(loaded.config.run.name, overrides)
        everything = [*options.overrides, *overrides, f"run.name={name}"]
        element = load_config(Path(options.config), site=options.site, overrides=everything)
        prepared = prepare(element.config, plan_for(element), _lead_s(element.config, plan), restart)
        directories.append(prepared.directory)
        say(f"sweep {len(directories) - 1}: {' '.join(overrides)} -> {prepared.directory.root}")
    index = _index(submission.directory)
    publish_text(index, "".join(f"{directory.root}\n" for directory in directories))
    return submission.sweep_job(stage, directories, index)


def _index(directory: RunDir) -> Path:
    """The run directories of a sweep, line N+1 for array task N."""
    return directory.root / "sweep.txt"
