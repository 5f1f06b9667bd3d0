"""python -m r1hpc.config check|show|explain|import|reference|flags"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from r1hpc.config.dump import dump_config
from r1hpc.config.explain import explain, reference
from r1hpc.config.flags_page import flags_page
from r1hpc.config.import_paths import check_import_paths
from r1hpc.config.import_script import import_script
from r1hpc.config.load import LoadedConfig, load_config
from r1hpc.errors import ConfigError, R1hpcError
from r1hpc.exit_codes import INVALID, SUCCESS
from r1hpc.plan.plan_for import plan_for, shape_is_known
from r1hpc.publish import publish_text


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except R1hpcError as error:
        with contextlib.suppress(BrokenPipeError):
            print(error, file=sys.stderr)
        return INVALID
    except BrokenPipeError:  # the reader (| head) has what it wanted
        _discard_output()
    return SUCCESS


def _discard_output() -> None:
    # Python writes what is left at its exit, and complains if nobody reads it.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m r1hpc.config", description="Check, show and import configurations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="validate a configuration, and plan it; print notices and ok")
    show = commands.add_parser("show", help="print the resolved configuration as YAML")
    for command, run in ((check, _check), (show, _show)):
        command.add_argument("config", metavar="CONFIG")
        _add_layers(command)
        command.set_defaults(run=run)

    one = commands.add_parser("explain", help="say what a key means, takes and is")
    one.add_argument("key", metavar="KEY", help="section.name, or a section")
    one.add_argument("config", metavar="CONFIG", nargs="?", help="also print the value there and where it is written")
    _add_layers(one)
    one.set_defaults(run=_explain)

    bring = commands.add_parser("import", help="turn a launch script of bash flag arrays into YAML")
    bring.add_argument("script", metavar="SCRIPT.sh", type=Path)
    bring.add_argument("-o", "--output", metavar="OUT.yaml", type=Path, help="default: standard output")
    bring.add_argument("--base", metavar="CONFIG", type=Path, help="configuration that gives what the script does not")
    bring.set_defaults(run=_import)

    commands.add_parser("reference", help="print docs/configuration-reference.md").set_defaults(run=_reference)
    commands.add_parser("flags", help="print docs/flags.md").set_defaults(run=_flags)
    return parser


def _add_layers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", metavar="NAME", help="sites/NAME.yaml beside CONFIG, or a path")
    parser.add_argument("--set", metavar="A.B=VALUE", dest="overrides", action="append", default=[])


def _load(arguments: argparse.Namespace) -> LoadedConfig:
    loaded = load_config(arguments.config, site=arguments.site, overrides=arguments.overrides)
    for notice in loaded.notices:
        print(f"notice: {notice}", file=sys.stderr)
    return loaded


def _check(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments)
    for notice in check_import_paths(loaded):
        print(f"notice: {notice}", file=sys.stderr)
    if shape_is_known(loaded):
        plan_for(loaded)
        print(f"{loaded.path}: ok")
    else:
        print(f"{loaded.path}: ok (sizes and memory: python -m r1hpc.plan, once the model's config.json is there)")


def _show(arguments: argparse.Namespace) -> None:
    print(dump_config(_load(arguments).config), end="")


def _explain(arguments: argparse.Namespace) -> None:
    loaded = _load(arguments) if arguments.config else None
    print(explain(arguments.key, loaded))


def _import(arguments: argparse.Namespace) -> None:
    imported = import_script(arguments.script, arguments.base)
    for notice in imported.notices:
        print(f"notice: {notice}", file=sys.stderr)
    if arguments.output is None:
        print(imported.text, end="")
    else:
        _write(arguments.output, imported.text)
        print(f"wrote {arguments.output}; next: python -m r1hpc.config check {arguments.output}")


def _write(path: Path, text: str) -> None:
    try:
        if path.is_dir():
            raise ConfigError([f"{path} is a directory: name a file in it, such as {path / 'run.yaml'}"])
        if path.exists() and not path.is_file():
            raise ConfigError([f"{path} is no file: leave -o out to print"])
        publish_text(path, text)
    except FileNotFoundError as error:
        raise ConfigError([f"{path} cannot be written: make the directory {path.parent} first"]) from error
    except OSError as error:
        raise ConfigError([f"{path} cannot be written: {error.strerror}; name another place"]) from error


def _reference(arguments: argparse.Namespace) -> None:
    print(reference(), end="")


def _flags(arguments: argparse.Namespace) -> None:
    print(flags_page(), end="")


if __name__ == "__main__":
    sys.exit(main())
