"""`python -m r1hpc.rehearsal up|down|status|run|env|rehearse|drill`: the private Slurm from a shell."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.client import SLURM_VARIABLE
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import take_down
from r1hpc.rehearsal.spec import ClusterSpec, Kind, default_directory

MODULE = "python -m r1hpc.rehearsal"


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status; problems go to standard error, without a traceback."""
    options = _parser().parse_args(arguments)
    # As Ctrl-C does: `up` then leaves nothing behind.
    signal.signal(signal.SIGTERM, _leave)
    try:
        return int(options.command(options))
    except R1hpcError as error:
        print(f"rehearsal: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _up(options: argparse.Namespace) -> int:
    spec = ClusterSpec(
        directory=options.dir,
        nodes=options.nodes,
        kind=options.kind,
        gpus_per_node=options.gpus_per_node,
        cpus_per_node=options.cpus_per_node,
        memory_mib=options.memory_mib,
        accounting=options.accounting,
        share=tuple(options.share),
        grace_s=options.grace_s,
        kill_wait_s=options.kill_wait_s,
        slurmd_timeout_s=options.slurmd_timeout_s,
        message_timeout_s=options.message_timeout_s,
        cred_expire_s=options.cred_expire_s,
        preempt_send_user_signal=options.preempt_send_user_signal,
        max_array_size=options.max_array_size,
    )
    cluster = RehearsalCluster.up(spec)
    print(f"up: {len(cluster.node_names)} nodes idle in {cluster.up_s:.1f} s ({cluster.kind}, {cluster.name})")
    print(f"use it: {MODULE} run --dir {shlex.quote(str(spec.directory))} -- sinfo")
    return 0


def _down(options: argparse.Namespace) -> int:
    print("down" if take_down(Layout.at(options.dir)) else f"nothing to take down in {options.dir}")
    return 0


def _status(options: argparse.Namespace) -> int:
    cluster = RehearsalCluster.attach(options.dir)
    print(f"{cluster.name}: {cluster.kind}, {len(cluster.node_names)} nodes, directory {cluster.spec.directory}")
    addresses = cluster.node_addresses
    for name, state in cluster.node_states().items():
        print(f"  {name}  {addresses[name]:<12} {state}")
    jobs = cluster.run(["squeue", "--all", "--array"], timeout_s=10, check=True).stdout
    print(jobs.rstrip())
    print("processes:")
    for pid, stat in sorted(cluster.processes().items()):
        print(f"  {pid:>8}  {stat.state}  {stat.name}")
    return 0


def _run(options: argparse.Namespace) -> int:
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    cluster = RehearsalCluster.attach(options.dir)
    command = cluster.command(words)
    sys.stdout.flush()
    # Becoming the command passes signals and the exit status on by itself.
    try:
        os.execvpe(command[0], command, cluster.environment())
    except FileNotFoundError:
        print(f"rehearsal: {command[0]}: no such command", file=sys.stderr)
        return 127


def _env(options: argparse.Namespace) -> int:
    cluster = RehearsalCluster.attach(options.dir)
    if cluster.kind is Kind.NAMESPACE:
        print(f"# the cluster has a network of its own: commands reach it through `{MODULE} run -- COMMAND`")
    for name in sorted(name for name in os.environ if SLURM_VARIABLE.fullmatch(name)):
        print(f"unset {name}")
    # Not the cluster's mark: `down` would take the shell for one of the cluster's processes.
    print(f"export SLURM_CONF={shlex.quote(cluster.environment()['SLURM_CONF'])}")
    return 0


def _rehearse(options: argparse.Namespace) -> int:
    # Here: it loads the configuration's libraries, which the other commands do without.
    from r1hpc.rehearsal.rehearse import rehearse

    return rehearse(options.config, options.dir, options.options)


def _drill(options: argparse.Namespace) -> int:
    from r1hpc.rehearsal.drills.play import Conditions, play_all
    from r1hpc.rehearsal.drills.table import DRILLS

    if options.list:
        for name, drill in DRILLS.items():
            print(f"{name:<16} {drill.proves}")
        return 0
    if options.ci:
        return _drills_of_ci(options)
    conditions = Conditions(
        config=options.config,
        directory=options.dir,
        kind=options.kind,
        settings=tuple(options.set),
        replay=options.replay,
        stage=options.stage,
    )
    return play_all(options.names, conditions, lambda line: print(line, flush=True))


def _drills_of_ci(options: argparse.Namespace) -> int:
    from r1hpc.rehearsal.drills.ci import AT_ONCE, plays
    from r1hpc.rehearsal.drills.play import prepare_model
    from r1hpc.rehearsal.drills.side_by_side import play_side_by_side

    # Once, for all of them.
    prepare_model(options.config, options.dir / "model", options.set)
    common = ["--config", str(options.config), "--kind", str(options.kind)]
    common += [word for setting in options.set for word in ("--set", setting)]
    return play_side_by_side(
        plays(options.names, common), options.dir, options.at_once or AT_ONCE, lambda line: print(line, flush=True)
    )


def _leave(signal_number: int, frame: FrameType | None) -> None:
    # Told twice, we would stop taking down what we brought up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal_number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=MODULE, description="A private Slurm on this host.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start it and wait until every node is idle")
    up.set_defaults(command=_up)
    _add_directory(up)
    _add_spec_options(up)
    for name, function, words in (
        ("down", _down, "end everything of it; also after an interrupted `up`"),
        ("status", _status, "show nodes, jobs and processes"),
        ("env", _env, "print shell lines that point Slurm commands at it"),
    ):
        command = commands.add_parser(name, help=words)
        command.set_defaults(command=function)
        _add_directory(command)
    whole = commands.add_parser("rehearse", help="submit a configuration on a private Slurm and wait for it")
    whole.set_defaults(command=_rehearse)
    _add_directory(whole)
    whole.add_argument("config", type=Path)
    whole.add_argument("options", nargs=argparse.REMAINDER, help="further options of r1hpc.submit")
    _add_drill(commands)
    run = commands.add_parser("run", help="run a command against it: run -- sinfo")
    run.set_defaults(command=_run)
    _add_directory(run)
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    return parser


def _add_drill(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    drill = commands.add_parser("drill", help="break a run on purpose, and check that it completes and nothing is lost")
    drill.set_defaults(command=_drill)
    drill.add_argument("names", nargs="*", metavar="NAME", help="which ones (default: all)")
    drill.add_argument("--list", action="store_true", help="say what each one proves")
    drill.add_argument(
        "--ci", action="store_true", help="as small as makes sense, side by side, most with made rollouts"
    )
    drill.add_argument("--at-once", type=int, metavar="N", help="with --ci: how many side by side")
    drill.add_argument("--config", type=Path, default=Path("configs/rehearsal.yaml"), help="default: %(default)s")
    drill.add_argument(
        "--replay",
        type=Path,
        metavar="DIR|auto",
        help="train on recorded rollouts (debug.save_rollouts), or on made ones, without engines",
    )
    drill.add_argument("--stage", choices=("train", "preflight"), help="preflight: break only the bring-up")
    drill.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the run's configuration")
    drill.add_argument("--kind", type=Kind, choices=list(Kind), default=Kind.AUTO, help="of the private Slurm's nodes")
    base = default_directory().parent / "drills"
    drill.add_argument("--dir", type=Path, default=base, help="where the clusters lie (default: %(default)s)")


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, default=default_directory(), help="its directory (default: %(default)s)")


def _add_spec_options(parser: argparse.ArgumentParser) -> None:
    default = ClusterSpec(directory=default_directory())
    parser.add_argument("--kind", type=Kind, choices=list(Kind), default=default.kind, help="default: %(default)s")
    for name, words in (
        ("nodes", "number of nodes"),
        ("gpus_per_node", "logical GPUs of a node"),
        ("cpus_per_node", "CPUs that Slurm believes a node to have"),
        ("memory_mib", "memory in MiB that Slurm believes a node to have"),
        ("grace_s", "GraceTime of partition low"),
        ("kill_wait_s", "KillWait"),
        ("slurmd_timeout_s", "SlurmdTimeout"),
        ("message_timeout_s", "MessageTimeout"),
        ("cred_expire_s", "wait of a requeued job"),
        ("max_array_size", "MaxArraySize"),
    ):
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=getattr(default, name), help=f"{words} (default: %(default)s)")
    parser.add_argument("--accounting", action="store_true", help="private MariaDB and slurmdbd, so that sacct answers")
    parser.add_argument("--preempt-send-user-signal", action="store_true", help="send --signal at preemption too")
    parser.add_argument(
        "--share", type=Path, action="append", default=[], metavar="PATH", help="directory under /tmp that nodes see"
    )
