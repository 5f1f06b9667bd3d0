"""`python -m r1hpc.rehearsal rehearse CONFIG`: the pipeline on a private Slurm, or on this bare host."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from r1hpc.config import Config, load_config
from r1hpc.config.base import split_slice
from r1hpc.errors import RehearsalError
from r1hpc.metrics.history import read_history
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.parameters import model_modules, total_parameters
from r1hpc.rehearsal.arithmetic import write_prompts
from r1hpc.rehearsal.arithmetic_model import ARITHMETIC_R1, place_model
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.lesson import Lesson
from r1hpc.rehearsal.spec import ClusterSpec
from r1hpc.rehearsal.tiny_config import TINY_R1
from r1hpc.rehearsal.version import SLURM_PACKAGES, SLURM_PROGRAMS, missing_programs
from r1hpc.submit.prepare import run_directory

TIMEOUT_S = 1800
MAX_PARAMETERS = 1_000_000_000
"""A missing model of more than this is not made: nobody rehearses with it."""


def rehearse(config: Path, directory: Path, options: Sequence[str] = ()) -> int:
    """Make the model, submit `config`, wait for it and show what was learned; returns an exit code.

    options: further ones of submit. A cluster that is up in `directory` is used and left up; otherwise one is made for
    this and ended after it.
    """
    settings = _load(config, options)
    _make_model(settings)
    submit = [sys.executable, "-m", "r1hpc.submit", str(config), "--wait", *options]
    missing = missing_programs(SLURM_PROGRAMS)
    if missing:
        print(f"no private Slurm: {', '.join(missing)} not installed (as root: apt-get install {SLURM_PACKAGES})")
        print("rehearsing on this host without it", flush=True)
        code = subprocess.run([*submit, "--cluster", "local"], timeout=TIMEOUT_S, check=False).returncode
    else:
        code = _on_slurm([*submit, "--cluster", "slurm"], settings.hosts.num_nodes, directory)
    if code != 0 or "--stage" in options or "--dry-run" in options:
        return code
    return _show_lesson(settings)


def _load(config: Path, options: Sequence[str]) -> Config:
    """The configuration with those of submit's options that change it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--site")
    parser.add_argument("--set", action="append", default=[])
    given, _ = parser.parse_known_args(options)
    return load_config(config, site=given.site, overrides=given.set).config


def _make_model(settings: Config) -> None:
    """Put the model where the configuration expects it, unless one is there: the taught one, else a random one."""
    config = Path(settings.ckpt.hf_config or TINY_R1)
    taught = config.resolve().parent == ARITHMETIC_R1
    if taught:
        sets = (settings.rollout.prompt_data, *settings.eval.eval_prompt_data.values())
        write_prompts(*(Path(split_slice(data)[0]) for data in sets))
    model = Path(settings.ckpt.hf_checkpoint)
    if (model / "config.json").exists():
        print(f"model: {model} is there")
        return
    if taught:
        place_model(model)
        print(f"model: {model} is a copy of {ARITHMETIC_R1}")
        return
    parameters = total_parameters(model_modules(read_model_shape(config)).checkpoint)
    if parameters > MAX_PARAMETERS:
        raise RehearsalError(
            f"{model}: is not there, and {config} describes {parameters / 1e9:.0f} billion parameters; random weights "
            f"are made for at most {MAX_PARAMETERS / 1e9:.0f} billion: fetch the model, or rehearse with a smaller one"
        )
    # A program of its own: it loads torch, which a login node is spared.
    command = [sys.executable, "-m", "r1hpc.rehearsal.tiny_model", str(model), "--config", str(config)]
    if subprocess.run(command, timeout=TIMEOUT_S, check=False).returncode != 0:
        raise RehearsalError(f"{model}: the model could not be made")


def _on_slurm(submit: Sequence[str], num_nodes: int, directory: Path) -> int:
    if (cluster := _running(directory)) is not None:
        return _run(cluster, submit)
    cluster = RehearsalCluster.up(ClusterSpec(directory=directory, nodes=num_nodes))
    print(f"private Slurm: {num_nodes} nodes idle in {cluster.up_s:.1f} s ({cluster.kind})", flush=True)
    try:
        return _run(cluster, submit)
    finally:
        cluster.down()


def _running(directory: Path) -> RehearsalCluster | None:
    try:
        return RehearsalCluster.attach(directory)
    except RehearsalError:
        return None


def _run(cluster: RehearsalCluster, command: Sequence[str]) -> int:
    process = cluster.popen(command)
    try:
        return process.wait(timeout=TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.terminate()


def _show_lesson(settings: Config) -> int:
    """Draw the curves and say what the run learned; 1 where that is less than a rehearsal must show."""
    run = run_directory(settings)
    # A program of its own: it loads what only pictures need.
    drawn = subprocess.run([sys.executable, "-m", "r1hpc.metrics", str(run.root)], check=False).returncode
    lessons = Lesson.of(read_history(run.metrics).lines)
    for lesson in lessons:
        print(lesson)
    print(f"TensorBoard: tensorboard --logdir {run.tensorboard}")
    return drawn or int(any(lesson.is_too_small for lesson in lessons))
