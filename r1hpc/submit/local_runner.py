"""python -m r1hpc.submit.local_runner RUN STAGE...: the stages in order on this host, by submitit's local executor.

submitit's local executor has no dependencies, starts all tasks of an array at once and knows one node: order, bounded
parallelism and the restarts of an attempt are ours.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from submitit.core.core import Job
from submitit.local.local import LocalExecutor

from r1hpc.cluster.processes import kill
from r1hpc.config import Config, load_config
from r1hpc.errors import R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import RunDir
from r1hpc.submit.follow import LogTail
from r1hpc.submit.local import exit_record
from r1hpc.submit.stages import BY_NAME, TRAIN, TRIALS, Stage

_POLL_S = 0.5
_RULE = "-" * 22
"""What submitit puts around a traceback."""

log = logging.getLogger(__name__)


class StageFailed(Exception):
    """A stage ended without success."""


class Terminated(Exception):
    """SIGTERM came."""


def main(argv: Sequence[str] | None = None) -> int:
    """Work the stages off; the verdict is published in RUN/logs/local.json."""
    root, *names = argv if argv is not None else sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: terminated.set())
    directory = RunDir(Path(root))
    exit_code, reason = 0, "all stages completed"
    try:
        config = load_config(directory.config).config
        for name in names:
            _run_stage(BY_NAME[name], config, directory, terminated)
    except (StageFailed, R1hpcError) as error:
        exit_code, reason = 1, str(error)
    except Terminated:
        exit_code, reason = 143, "terminated by a signal"
    except Exception as error:  # a run without a verdict would pass for a killed one
        log.exception("the stages cannot go on")
        exit_code, reason = 1, repr(error)
    publish_json(exit_record(directory), {"exit_code": exit_code, "reason": reason})
    log.info("%s", reason)
    return exit_code


def _run_stage(stage: Stage, config: Config, directory: RunDir, terminated: threading.Event) -> None:
    """Raise StageFailed with the cause and the log's place when a task of the stage fails, Terminated after a TERM."""
    started = time.monotonic()
    folder = directory.submitit / stage.name / time.strftime("%Y%m%dT%H%M%S-local", time.gmtime())
    job_class = _job_of(stage)
    if stage.name in ("cast", "convert"):
        section = config.cast if stage.name == "cast" else config.convert
        tasks = [job_class(str(directory.root), index) for index in range(section.num_tasks)]
        parallel, minutes = min(os.cpu_count() or 1, section.max_parallel or section.num_tasks), section.time_limit
    else:
        tasks = [job_class(str(directory.root), stage.until)]
        parallel, minutes = 1, config.slurm.time_limit
    log.info("stage %s: %d task(s), %d at once", stage.name, len(tasks), parallel)
    _run_tasks(stage.name, tasks, parallel, minutes, folder, terminated)
    log.info("stage %s: completed in %.0f s", stage.name, time.monotonic() - started)


def _job_of(stage: Stage) -> Callable[..., Callable[[], Any]]:
    """The train job's agents need a loopback allocation around them; arrays run as they are."""
    if stage in (*TRIALS, TRAIN):
        from jobs.local_train import LocalTrain  # not at import: dry runs and arrays have no use for it

        return LocalTrain
    return stage.load_job()


def _run_tasks(
    name: str,
    tasks: list[Callable[[], Any]],
    parallel: int,
    minutes: int,
    folder: Path,
    terminated: threading.Event,
) -> None:
    executor = LocalExecutor(folder=folder)
    executor.update_parameters(timeout_min=minutes, stderr_to_stdout=True)
    waiting = list(enumerate(tasks))
    running: list[tuple[int, Job[Any]]] = []
    finished = 0
    tail = LogTail()
    try:
        while waiting or running:
            if terminated.is_set():
                raise Terminated
            while waiting and len(running) < parallel:
                index, task = waiting.pop(0)
                running.append((index, executor.submit(task)))
            for index, job in [pair for pair in running if pair[1].done()]:
                running.remove((index, job))
                error = job.exception()
                if error is not None:
                    raise StageFailed(f"stage {name}, task {index}: {cause(str(error))}; log: {job.paths.stdout}")
                finished += 1
                if len(tasks) > 1:
                    log.info("stage %s: %d of %d tasks done", name, finished, len(tasks))
            if len(tasks) == 1:
                _show(tail, folder)
            time.sleep(_POLL_S)
    finally:
        if len(tasks) == 1:
            _show(tail, folder)
        for _, job in running:
            kill(int(job.job_id), signal.SIGTERM)  # submitit's controller hands it on to the task
            job.wait()


def _show(tail: LogTail, folder: Path) -> None:
    """Pass the task's output on as it comes."""
    for line in tail.new_lines(sorted(folder.glob("*_log.out"))):
        print(line, flush=True)


def cause(text: str) -> str:
    """The exception's own words in what submitit says of a failed task, which ends with the places of its logs.

    submitit puts the traceback between two lines of dashes; a task that left no result has none: its first lines stay.
    """
    _, ruled, rest = text.partition(f"{_RULE}\n")
    trace = rest.partition(f"\n{_RULE}")[0]
    if not ruled or "Traceback" not in trace:
        return " ".join(line.strip() for line in text.partition("\n--")[0].splitlines())
    lines = trace.rstrip().splitlines()
    # Frames are indented; behind the last of them stands the exception, whose message may have several lines.
    frame = max(number for number, line in enumerate(lines) if line.startswith('  File "'))
    words = list(itertools.dropwhile(lambda line: line.startswith("    "), lines[frame + 1 :]))
    return re.sub(r"^(?:\w+\.)*(\w+: )", r"\1", "\n".join(words).strip())


if __name__ == "__main__":
    sys.exit(main())
