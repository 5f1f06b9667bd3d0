"""What was asked for, understood: the configuration, its plan, the stages and the hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from r1hpc.cluster.hostfile import read_hostfile, require
from r1hpc.config import Config, LoadedConfig, load_config
from r1hpc.errors import SubmitError
from r1hpc.plan import Plan
from r1hpc.plan.plan_for import plan_for
from r1hpc.rundir import RunDir
from r1hpc.submit.prepare import run_directory
from r1hpc.submit.stages import BY_NAME, PIPELINE, TRAIN, TRIALS, Stage, foreign_source
from r1hpc.submit.sweep import combinations, element_name

Say = Callable[[str], None]

ALL_COMPLETE = (
    "every stage is complete: nothing to submit; to go on raise rollout.num_rollout, to start another set run.name"
)


@dataclass(frozen=True)
class Options:
    """The command line."""

    config: str
    site: str | None = None
    overrides: Sequence[str] = ()
    stages: Sequence[str] | None = None
    dry_run: bool = False
    prepare: bool = False
    again: bool = False
    own_job: str | None = None
    signal_lead: int | None = None
    wait: bool = False
    wait_timeout: float | None = None
    cluster: str = "auto"
    sweep: Sequence[str] = ()

    @property
    def command(self) -> list[str]:
        """Arguments that go on with the run: these, without what was meant for one submit alone (stages, waiting)."""
        named = [("--site", self.site)] if self.site is not None else []
        named += [("--cluster", self.cluster)] if self.cluster != "auto" else []
        named += [("--set", override) for override in self.overrides] + [("--sweep", sweep) for sweep in self.sweep]
        return [self.config, *(word for option in named for word in option)]


@dataclass(frozen=True)
class Element:
    """One run of a sweep."""

    overrides: Sequence[str]
    config: Config
    plan: Plan
    command: Sequence[str]
    """Arguments that submit it by itself."""

    @property
    def directory(self) -> RunDir:
        """Its own run directory; it may not exist yet."""
        return run_directory(self.config)


@dataclass(frozen=True)
class Order:
    """A valid order; everything in it has been checked but what only the machine can say."""

    options: Options
    loaded: LoadedConfig
    plan: Plan
    hosts: Sequence[str]
    """Of the hostfile, spares included; empty when Slurm chooses."""
    stages: Sequence[Stage]
    elements: Sequence[Element] = ()
    """Of the sweep; empty without one."""

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.loaded.config

    @property
    def directory(self) -> RunDir:
        """The run directory; it may not exist yet."""
        return run_directory(self.config)


def take_order(options: Options, say: Say) -> Order:
    """Load, plan, read the hostfile, choose the stages. Raises R1hpcError with everything that is wrong."""
    loaded = load_config(Path(options.config), site=options.site, overrides=options.overrides)
    for notice in loaded.notices:
        say(f"note: {notice}")
    plan, hosts = plan_for(loaded), _hosts(loaded, say)
    stages = _stages(loaded.config, options, say)
    return Order(options, loaded, plan, hosts, stages, _elements(loaded.config, options))


def _elements(base: Config, options: Options) -> list[Element]:
    """Every run of the sweep, loaded and planned; each commits to its own run directory."""
    elements = []
    for overrides in combinations(options.sweep):
        own = [f"run.name={element_name(base.run.name, overrides)}", "ckpt.load=null", "ckpt.save=null"]
        alone = replace(options, overrides=[*options.overrides, *overrides, *own], sweep=())
        loaded = load_config(Path(options.config), site=options.site, overrides=alone.overrides)
        elements.append(Element(overrides, loaded.config, plan_for(loaded), alone.command))
    names = [element.config.run.name for element in elements]
    if len(set(names)) < len(names):
        raise SubmitError(f"--sweep: two elements would share a run directory: {', '.join(sorted(names))}")
    return elements


def _stages(config: Config, options: Options, say: Say) -> list[Stage]:
    """The stages asked for, in pipeline order, or the whole pipeline without what is complete already."""
    if options.stages is not None:
        stages = [stage for name, stage in BY_NAME.items() if name in options.stages]
    else:
        stages = []
        for stage in PIPELINE:
            if stage.is_complete(config):
                output = stage.output(config)
                say(
                    f"stage {stage.name}: "
                    + ("not needed" if output is None else f"complete ({output})")
                    + ", left out"
                )
                if source := foreign_source(stage, config):
                    say(f"note: {output} was made from {source}, which this configuration does not name")
            else:
                stages.append(stage)
    if options.sweep and (not stages or stages[-1] not in (*TRIALS, TRAIN)):
        raise SubmitError("--sweep makes an array of train jobs: --stage has to end with train, canary or preflight")
    return stages


def _hosts(loaded: LoadedConfig, say: Say) -> list[str]:
    """The hosts of the hostfile, spares included, checked against the configuration; [] when Slurm chooses."""
    hosts = loaded.config.hosts
    if hosts.hostfile == "auto":
        return []
    hostfile = read_hostfile(Path(hosts.hostfile))
    for notice in hostfile.notices:
        say(f"note: {notice}")
    require(hostfile, hosts.num_nodes, hosts.gpus_per_node)
    return [host.name for host in hostfile.hosts]
