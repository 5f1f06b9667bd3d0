"""python -m r1hpc.plan CONFIG: plan a run, print what it needs, refuse what cannot fit."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from r1hpc.config import load_config
from r1hpc.errors import R1hpcError
from r1hpc.exit_codes import INVALID, SUCCESS
from r1hpc.plan.plan import Plan
from r1hpc.plan.plan_for import plan_for
from r1hpc.plan.render import render_plan
from r1hpc.plan.to_json import plan_to_json


def main(argv: list[str] | None = None) -> int:
    """Plan and print; the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        loaded = load_config(arguments.config, site=arguments.site, overrides=arguments.overrides)
        for notice in loaded.notices:
            print(f"notice: {notice}", file=sys.stderr)
        plan = plan_for(loaded, model=arguments.model, num_prompts=arguments.num_prompts)
    except R1hpcError as error:
        print(error, file=sys.stderr)
        return INVALID
    try:
        _print(plan, as_json=arguments.json)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return SUCCESS


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m r1hpc.plan", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", type=Path)
    parser.add_argument("--site", metavar="NAME", help="sites/NAME.yaml beside CONFIG, or a path")
    parser.add_argument("--set", metavar="A.B=VALUE", dest="overrides", action="append", default=[])
    parser.add_argument("--model", metavar="CONFIG.JSON", type=Path, help="plan for this model in place of ckpt's")
    parser.add_argument(
        "--num-prompts", metavar="N", type=_count, help="size of the data set, for the number of epochs"
    )
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    return parser


def _count(text: str) -> int:
    """A whole number of at least 1; argparse tells the message of its error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def _print(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan_to_json(plan), indent=2))
    elif sys.stdout.isatty():
        _print_on_terminal(plan)
    else:
        print(render_plan(plan), end="")


def _print_on_terminal(plan: Plan) -> None:
    # rich takes a fifth of a second to import: a dry run or a pipe does not wait for it.
    from rich.console import Console

    from r1hpc.plan.terminal import print_plan

    print_plan(plan, Console())


if __name__ == "__main__":
    sys.exit(main())
