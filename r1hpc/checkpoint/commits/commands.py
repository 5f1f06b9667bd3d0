"""python -m r1hpc.checkpoint commits list|verify|prune DIR"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.commits.check import check_commit
from r1hpc.checkpoint.commits.names import iteration_of
from r1hpc.checkpoint.commits.prune import prunable
from r1hpc.checkpoint.commits.retention import Judged, directories, judge_all, remove_commit, remove_tree
from r1hpc.errors import CheckpointError
from r1hpc.exit_codes import SUCCESS
from r1hpc.plan.units import show_bytes

PROBLEMS_FOUND = 1


def add_commands(
    parser: argparse.ArgumentParser,
    count: Callable[[str], int],
    add_workers: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Add the subcommands; count: parses a whole number of at least 1."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    show = commands.add_parser("list", help="every commit, and what is wrong with it; reads no weights")
    show.add_argument("path", metavar="DIR", type=Path, help="directory of commits: RUN/checkpoints, or ckpt.save")
    show.add_argument("--json", action="store_true", help="print everything as JSON")
    show.set_defaults(run=_list)

    check = commands.add_parser("verify", help="read all of a commit; exit code 1 if anything is wrong")
    check.add_argument("path", metavar="DIR", type=Path, help="one commit, or the directory that commits lie in: all")
    add_workers(check)
    check.set_defaults(run=_verify)

    prune = commands.add_parser("prune", help="remove all but the newest valid commits, and what killed saves left")
    prune.add_argument("path", metavar="DIR", type=Path, help="directory of commits")
    prune.add_argument("--keep", metavar="N", type=count, default=2, help="valid commits that stay (default: 2)")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    prune.set_defaults(run=_prune)


def _list(arguments: argparse.Namespace) -> int:
    judged = judge_all(_root(arguments.path))
    if arguments.json:
        print(json.dumps([_as_json(one) for one in judged], indent=2))
        return SUCCESS
    newest = next((one for one in judged if one.commit), None)
    for one in judged:
        print(_line(one) + ("  <- a run goes on from here" if one is newest else ""))
    if newest is None:
        print(f"{arguments.path}: holds no valid commit")
    return SUCCESS


def _verify(arguments: argparse.Namespace) -> int:
    path: Path = arguments.path.absolute()
    chosen = [path] if iteration_of(path.name) is not None else directories(_root(path))
    if not chosen:
        raise CheckpointError(f"{path}: holds no commit (iter_0000020, for instance)")
    good = True
    for directory in chosen:
        findings = check_commit(directory, workers=arguments.workers, say=_say)
        print(f"{directory}:")
        for line in findings.lines():
            print(f"  {line}")
        good = good and findings.good
    return SUCCESS if good else PROBLEMS_FOUND


def _prune(arguments: argparse.Namespace) -> int:
    root = _root(arguments.path)
    done = "would remove" if arguments.dry_run else "removed"
    freed = 0
    for path, why in list(prunable(root, arguments.keep)):
        size = _bytes_in(path)
        if not arguments.dry_run:
            if iteration_of(path.name) is None:
                remove_tree(path)
            elif not remove_commit(path):
                print(f"{path}: is being read, so it stays")
                continue
        freed += size
        print(f"{done} {path}, {show_bytes(size)}: {why}")
    print(f"{done} {show_bytes(freed)} in all")
    return SUCCESS


def _line(one: Judged) -> str:
    if one.commit is None:
        return f"{one.directory.name}  not valid: {one.problem}"
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.commit.committed_at))
    return f"{one.directory.name}  {when}  {show_bytes(one.commit.size_bytes)}"


def _as_json(one: Judged) -> dict[str, Any]:
    found = {"directory": str(one.directory), "valid": one.commit is not None, "problem": one.problem or None}
    if one.commit is None:
        return found
    commit = one.commit
    return found | {
        "iteration": commit.iteration,
        "committed_at": commit.committed_at,
        "bytes": commit.size_bytes,
        "record": dict(commit.record),
    }


def _root(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: is no directory; commits lie in RUN/checkpoints, or in ckpt.save")
    return path


def _bytes_in(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
