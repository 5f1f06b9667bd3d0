"""python -m r1hpc.status RUN: where a run stands, why it stopped, and what to do.

Exit code 0: done, or it goes on by itself. 1: it needs a person (held, failed, cancelled, lost), or there is no run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from r1hpc.errors import R1hpcError
from r1hpc.rundir import RunDir
from r1hpc.status.report import Status, gather
from r1hpc.status.text import render
from r1hpc.status.verdict import GOOD

_CLEAR = "\x1b[H\x1b[2J"
_ENDS = frozenset(("done", "held", "failed", "cancelled", "lost", "prepared"))
"""States that --watch ends at: nothing changes by itself."""


def main(argv: list[str] | None = None) -> int:
    """Print the status; problems go to stderr without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m r1hpc.status", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run directory: run.root/run.name")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", action="store_true", help="again and again, until nothing changes by itself")
    parser.add_argument("--every", type=float, default=10.0, metavar="SECONDS", help="with --watch")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run.absolute())
    try:
        while True:
            status = gather(run, time.time())
            _show(status, as_json=arguments.json, clear=arguments.watch and sys.stdout.isatty())
            if not arguments.watch or status.verdict.state in _ENDS:
                return 0 if status.verdict.state in GOOD else 1
            time.sleep(arguments.every)
    except R1hpcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `| head` has seen enough. The interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _show(status: Status, *, as_json: bool, clear: bool) -> None:
    text = json.dumps(status.to_json()) if as_json else render(status, shutil.get_terminal_size().columns)
    print((_CLEAR if clear else "") + text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
