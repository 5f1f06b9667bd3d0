"""python -m r1hpc.submit CONFIG: validate, plan, and queue the stages of a run."""

from __future__ import annotations

import argparse
import os
import sys

from r1hpc.errors import ProblemsError, R1hpcError
from r1hpc.exit_codes import CRASHED, INVALID
from r1hpc.submit.command import submit
from r1hpc.submit.order import Options
from r1hpc.submit.stages import BY_NAME


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; with an error of one screen on stderr 64 where the configuration is wrong, else 1."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.submit", description=__doc__)
    parser.add_argument("config", help="the run's YAML file, e.g. configs/r1.yaml")
    parser.add_argument("--site", help="overlay of configs/sites/NAME.yaml")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--stage", dest="stages", action="append", choices=sorted(BY_NAME), help="only this stage")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and the exact sbatch texts, submit nothing"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="write the run directory, print its path, submit nothing"
    )
    parser.add_argument("--again", action="store_true", help="with --prepare: for a restarted job, keeps its ledger")
    parser.add_argument("--own-job", metavar="JOBID", help="with --prepare: from inside this very Slurm job")
    parser.add_argument("--signal-lead", type=int, metavar="SECONDS", help="with --prepare: that of the job's --signal")
    parser.add_argument("--wait", action="store_true", help="follow the jobs until all of them have ended")
    parser.add_argument("--wait-timeout", type=float, metavar="SECONDS", help="stop following after this long")
    parser.add_argument("--cluster", choices=("auto", "slurm", "local"), default="auto")
    parser.add_argument("--sweep", action="append", default=[], metavar="KEY=V,V", help="an array of train jobs")
    arguments = parser.parse_args(argv)
    try:
        # A script reads the directory that was prepared from standard output, and its log shows the rest.
        told = sys.stderr if arguments.prepare else sys.stdout
        submit(
            Options(**vars(arguments)),
            say=lambda line: print(line, file=told, flush=True),
            answer=lambda line: print(line, flush=True),
        )
    except R1hpcError as error:
        print(f"error: {error}", file=sys.stderr)
        return INVALID if isinstance(error, ProblemsError) else CRASHED
    except BrokenPipeError:
        # `| head` has seen enough; what was submitted goes on. The interpreter must not flush into the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("stopped following; what was submitted goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
