"""python -m r1hpc.checkpoint inspect|verify|export|commits"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from r1hpc.checkpoint.commits.commands import add_commands
from r1hpc.checkpoint.export import run_export
from r1hpc.checkpoint.export_plan import plan_export
from r1hpc.checkpoint.findings import Scope
from r1hpc.checkpoint.inspect import contents, render, select, to_json
from r1hpc.checkpoint.verify import verify
from r1hpc.errors import R1hpcError
from r1hpc.exit_codes import INVALID, SUCCESS
from r1hpc.plan.units import show_bytes, show_count

PROBLEMS_FOUND = 1


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except R1hpcError as error:
        print(error, file=sys.stderr)
        return INVALID
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SUCCESS
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        """As argparse, with the exit code that means a wrong command line to everything else here."""
        self.print_usage(sys.stderr)
        self.exit(INVALID, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m r1hpc.checkpoint", description="Look into, check and export checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    look = commands.add_parser("inspect", help="list keys, shapes, dtypes and bytes, from metadata alone")
    look.add_argument("path", metavar="PATH", type=Path, help="torch_dist or Hugging Face checkpoint")
    look.add_argument("--key", metavar="PATTERN", help="only keys with this in them; * and ? match all of a key")
    look.add_argument("--chunks", action="store_true", help="where each chunk lies")
    look.add_argument("--all", action="store_true", help="one line for each tensor")
    look.add_argument("--json", action="store_true", help="print everything as JSON")
    look.set_defaults(run=_inspect)

    check = commands.add_parser("verify", help="check structure, hashes and values; exit code 1 if anything is wrong")
    check.add_argument("path", metavar="PATH", type=Path, help="torch_dist or Hugging Face checkpoint")
    check.add_argument("--source", metavar="HF_DIR", type=Path, help="what it was made from; default: what it names")
    scope = check.add_mutually_exclusive_group()
    scope.add_argument(
        "--sample",
        metavar="N",
        type=_count,
        help="structure, and the values of N tensors or more: at least one of each kind",
    )
    scope.add_argument("--hashes", action="store_true", help="structure and hashes; no values")
    scope.add_argument("--structure", action="store_true", help="structure alone: reads no payload")
    _add_workers(check)
    check.set_defaults(run=_verify)

    out = commands.add_parser("export", help="write a torch_dist checkpoint as a Hugging Face one")
    out.add_argument("path", metavar="PATH", type=Path, help="torch_dist checkpoint, of convert or of training")
    out.add_argument("out", metavar="OUT", type=Path, help="directory to make")
    like = "Hugging Face checkpoint that gives configuration, tokenizer, code and which weight lies in which file"
    out.add_argument("--like", metavar="HF_DIR", type=Path, required=True, help=like)
    out.add_argument("--format", choices=("bf16", "fp8"), default="bf16", help="of the weights (default: bf16)")
    _add_workers(out)
    out.set_defaults(run=_export)

    commits = commands.add_parser("commits", help="list, verify or prune the commits of a run")
    add_commands(commits, _count, _add_workers)
    return parser


def _add_workers(parser: argparse.ArgumentParser) -> None:
    count = min(8, len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", metavar="N", type=_count, default=count, help="processes (default: %(default)s)")


def _count(text: str) -> int:
    """A whole number of at least 1; argparse tells the message of its error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _inspect(arguments: argparse.Namespace) -> int:
    table = contents(arguments.path)
    if arguments.key is not None:
        table = select(table, arguments.key)
    if arguments.json:
        print(json.dumps(to_json(table), indent=2))
    else:
        for line in render(table, unfolded=arguments.all, pieces=arguments.chunks):
            print(line)
    return SUCCESS


def _verify(arguments: argparse.Namespace) -> int:
    only_structure, only_hashes = arguments.structure, arguments.hashes
    scope = Scope(
        hashes=not only_structure and arguments.sample is None,
        values=not only_structure and not only_hashes,
        sample=arguments.sample,
    )
    findings = verify(arguments.path, source=arguments.source, scope=scope, workers=arguments.workers, say=_say)
    for line in findings.lines():
        print(line)
    return SUCCESS if findings.good else PROBLEMS_FOUND


def _export(arguments: argparse.Namespace) -> int:
    export = plan_export(arguments.path, arguments.like, arguments.out, fp8=arguments.format == "fp8")
    if export.from_like:
        count = sum(1 for _ in export.from_like)
        print(
            f"{count:,} tensors of the prediction layers are not in {export.checkpoint.directory}: "
            f"taken from {export.like.directory}"
        )
    outcome = run_export(export, arguments.workers, _say)
    print(f"wrote {show_bytes(outcome.written_bytes)}, {show_count(len(export.like.names))} tensors")
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
