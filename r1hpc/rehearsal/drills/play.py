"""`python -m r1hpc.rehearsal drill NAME...`: brings a private Slurm up, plays the drill on it, checks what is left."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1hpc.config import Config, load_config
from r1hpc.errors import R1hpcError, RehearsalError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.drills.checks import nothing_left, nothing_lost, shared_memory, status_is
from r1hpc.rehearsal.drills.scene import DrillError, Scene
from r1hpc.rehearsal.drills.table import DRILLS, Drill
from r1hpc.rehearsal.rehearse import rehearse
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rundir import RunDir
from r1hpc.submit.stages import CAST, CONVERT

Say = Callable[[str], None]
MADE = Path("auto")
"""Instead of a directory of recorded rollouts: make some."""
_MAKE_S = 120
_TIMINGS = {"grace_s": 10, "kill_wait_s": 5, "slurmd_timeout_s": 15, "cred_expire_s": 5}


@dataclass(frozen=True)
class Conditions:
    """How drills are played."""

    config: Path
    directory: Path
    """One cluster a drill below it; what a failed one leaves lies there."""
    kind: Kind = Kind.AUTO
    settings: tuple[str, ...] = ()
    """KEY=VALUE for every run."""
    replay: Path | None = None
    """Recorded rollouts to train on, or MADE; no engine is started. None: all is live."""
    stage: str | None = None
    """train, or preflight: only the bring-up is played; None takes the drill's own."""


def play_all(names: Sequence[str], conditions: Conditions, say: Say) -> int:
    """Play the drills in order; returns the exit code: 0 when all have passed."""
    unknown = [name for name in names if name not in DRILLS]
    if unknown:
        raise RehearsalError(f"no drill {', '.join(unknown)}; there are {', '.join(DRILLS)}")
    failed = []
    for name in names or DRILLS:
        started = time.monotonic()
        try:
            story = play(name, DRILLS[name], conditions)
            say(f"drill {name}: passed in {time.monotonic() - started:.0f} s: {DRILLS[name].proves}: {story}")
        except R1hpcError as error:
            failed.append(name)
            say(f"drill {name}: FAILED after {time.monotonic() - started:.0f} s: {error}")
    if failed:
        say(f"failed: {', '.join(failed)}; what they left: {conditions.directory}")
    return 1 if failed else 0


def play(name: str, drill: Drill, conditions: Conditions) -> str:
    """Play one drill; returns how it went. Raises DrillError."""
    stage = conditions.stage or drill.stages[0]
    if stage not in drill.stages:
        return f"left out: it says nothing about stage {stage}"
    if drill.engines and conditions.replay is not None:
        return "left out: it needs engines"
    directory = conditions.directory / name
    settings = _settings(name, drill, conditions, directory)
    config = load_config(conditions.config, overrides=settings).config
    shutil.rmtree(directory / "shared", ignore_errors=True)
    nodes = config.hosts.num_nodes + drill.spare_nodes
    cluster = RehearsalCluster.up(
        ClusterSpec(directory=directory, nodes=nodes, kind=conditions.kind, **_TIMINGS | dict(drill.cluster))
    )
    try:
        if conditions.replay == MADE:
            _make_rollouts(config)
        if stage == "train":
            prepare_model(conditions.config, directory, settings)
        scene = Scene(
            cluster=cluster,
            config=conditions.config,
            directory=RunDir(Path(config.run.root) / config.run.name),
            settings=settings,
            num_nodes=config.hosts.num_nodes,
            num_rollout=config.rollout.num_rollout,
            stage=stage,
        )
        before = shared_memory(scene)
        story = [drill.play(scene), nothing_left(scene, before)]
        if stage == "train":
            story += [nothing_lost(scene.directory, scene.num_rollout), status_is(scene, "done")]
        return "; ".join(story)
    finally:
        cluster.down()


def _settings(name: str, drill: Drill, conditions: Conditions, directory: Path) -> list[str]:
    """Later ones count more: what was asked for on the command line comes last."""
    own = [f"run.name=drill-{name}", f"run.root={directory}/shared/runs"]
    if conditions.replay is None:
        own.append("debug.save_rollouts=true")
    else:
        replay = directory / "shared" / "made" if conditions.replay == MADE else conditions.replay.absolute()
        # Nobody is there to answer an evaluation.
        own += [f"debug.replay_rollouts={replay}", "eval.eval_interval=null"]
    return [*own, *drill.settings, *conditions.settings]


def _make_rollouts(config: Config) -> None:
    """Make the rollouts that the run replays, of the sizes that it expects."""
    assert config.debug.replay_rollouts is not None
    sizes = {
        "--rollouts": config.rollout.num_rollout,
        "--groups": config.rollout.rollout_batch_size,
        "--samples": config.rollout.n_samples_per_prompt,
    }
    # A program of its own: it loads numpy and a tokenizer, which the rehearsal does without.
    command = [sys.executable, "-m", "r1hpc.rehearsal.made_rollouts", config.debug.replay_rollouts]
    command += [str(word) for option in sizes.items() for word in option]
    if subprocess.run(command, timeout=_MAKE_S, check=False).returncode != 0:
        raise DrillError(f"{config.debug.replay_rollouts}: the rollouts could not be made")


def prepare_model(path: Path, directory: Path, settings: Sequence[str]) -> None:
    """Make the model of a configuration, and its checkpoints, unless they are there.

    directory: of the private Slurm that is made for it.
    """
    config = load_config(path, overrides=settings).config
    stages = [word for stage in (CAST, CONVERT) if not stage.is_complete(config) for word in ("--stage", stage.name)]
    options = [*stages, *(word for setting in settings for word in ("--set", setting))]
    if stages and rehearse(path, directory, options) != 0:
        raise DrillError(f"{config.ckpt.ref_load} could not be made")
