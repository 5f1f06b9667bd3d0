"""Starting daemons: in the foreground, marked, in a session of their own, their words kept in a file."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.client import private_environment
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import Namespace
from r1hpc.rehearsal.processes import ProcessId, listens
from r1hpc.rehearsal.version import search_path

LOG_TAIL_LINES = 8


class Starter:
    """Starts the daemons of one cluster and watches them while it comes up."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.outer: Namespace | None = None
        """Where daemons are started; set as soon as it exists."""

        self.started: dict[str, subprocess.Popen[str]] = {}
        """By name; kept so that they can be reaped by the process which started them."""

    def start(
        self, name: str, argv: Sequence[str], *, cwd: Path | None = None, stdin: int = subprocess.DEVNULL
    ) -> ProcessId:
        """Start a daemon that stays in the foreground."""
        directory = cwd or self._layout.directory
        wrapped = list(argv) if self.outer is None else self.outer.wrap(argv, str(directory))
        with self._layout.console(name).open("a") as console:
            process = self.spawn(name, wrapped, directory, stdin=stdin, stdout=console, stderr=console)
        return ProcessId.of(process.pid)

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[str],
        stderr: int | IO[str],
    ) -> subprocess.Popen[str]:
        """Start a command as it is given, with the marks of a daemon."""
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**private_environment(self._layout, os.environ), "PATH": search_path()},
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            # A Ctrl-C at the terminal must reach `up` alone, which then ends the daemons itself.
            start_new_session=True,
        )
        self.started[name] = process
        return process

    def wait(self, what: str, ready: Callable[[], bool], watch: Sequence[str], deadline_s: float) -> None:
        """Wait until `ready`; RehearsalError with log lines when a watched daemon ends first, or at the deadline.

        `watch` names first the daemon whose log tells why there is nothing yet.
        """
        deadline = time.monotonic() + deadline_s
        while not ready():
            for name in watch:
                if (status := self.started[name].poll()) is not None:
                    raise RehearsalError(f"{name} ended with status {status} before {what}\n{self.last_words(name)}")
            if time.monotonic() > deadline:
                raise RehearsalError(f"{what}: not within {deadline_s:g} s\n{self.last_words(watch[0])}")
            time.sleep(0.02)

    def wait_listening(self, name: str, port: int, deadline_s: float) -> None:
        """Wait until a daemon listens on its port."""
        self.wait(f"{name} listens on port {port}", lambda: listens(self.started[name].pid, port), [name], deadline_s)

    def last_words(self, name: str) -> str:
        """Return the last lines of a daemon's log and console, for a person to read."""
        texts: list[str] = []
        log_name = f"slurmd.{name}" if name.startswith("node") else name
        for path in (self._layout.log(log_name), self._layout.console(name)):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if lines:
                texts += [f"last lines of {path}:", *(f"  {line}" for line in lines[-LOG_TAIL_LINES:])]
        return "\n".join(texts) or f"{name} wrote no log"

    def forget(self) -> None:
        """Take the exit status of every daemon that ended."""
        for process in self.started.values():
            process.poll()
