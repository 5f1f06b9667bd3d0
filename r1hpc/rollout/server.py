"""One process of an SGLang engine: started, watched and ended as a child of the actor that owns it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1hpc.cluster.scratch import SCRATCH
from r1hpc.config import Config
from r1hpc.rollout import keeper
from r1hpc.rollout.engine_args import boot_checkpoint, server_arguments
from r1hpc.rollout.engine_control import EngineControl, EngineControlError
from r1hpc.rollout.engine_environment import engine_environment
from r1hpc.rollout.engine_log import telling_lines
from r1hpc.rollout.guarded_server import write_key
from r1hpc.rollout.placement import EngineProcess
from r1hpc.rollout.start_checks import EngineStartError, check_checkpoint, check_exposure, check_ports_free
from r1hpc.rollout.versions import Capabilities, installed_capabilities

__all__ = ["EngineExit", "EngineServer", "EngineStartError", "engine_exit"]

_POLL_S = 0.25
_LONGEST_BASE = 107 - len("/r1-engine-12345678/tmp12345678") - 8
_MARGIN_S = keeper.REAP_S + 5.0
"""Seconds after the grace in which the keeper must have ended everything."""


@dataclass(frozen=True)
class EngineExit:
    """A server that ended."""

    name: str
    exit_code: int | None
    """None where a signal killed it."""
    signal_name: str | None
    log: Path

    def __str__(self) -> str:
        return f"{self.name} {self.told}"

    @property
    def told(self) -> str:
        """`ended with exit code 2`, and what the log says."""
        return f"ended with {self.signal_name or f'exit code {self.exit_code}'}; {_said(self.log)}"


class EngineServer:
    """A server process and all that it starts. Ended by `stop`, by leaving the context, and when its owner dies.

    `start` may be called again after the end: an engine that died is rebuilt in its place.
    """

    def __init__(
        self,
        config: Config,
        process: EngineProcess,
        logs: Path,
        *,
        environment: Mapping[str, str] = os.environ,
        grace_s: float = 10.0,
        secret: str | None = None,
    ) -> None:
        """`logs` is a directory; `grace_s` passes between SIGTERM and SIGKILL at the end.

        `secret` is the key that every request must show, and never in a command line, an environment or a log; without
        one the server starts on loopback only. Raises UnsupportedSglang and EngineArgumentError.
        """
        self.process = process
        self.capabilities: Capabilities = installed_capabilities()
        self.log = logs / f"{process.name}.log"
        """Of the last start; a restart has a log of its own."""
        self._logs = logs
        self.control = EngineControl(process.url, secret=secret)
        self._config = config
        self._secret = secret
        self._arguments = server_arguments(config, process, self.capabilities)
        self._inherited = dict(environment)
        self._grace_s = grace_s
        self._keeper: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None

    async def __aenter__(self) -> EngineServer:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def serves(self) -> bool:
        """Whether this process answers HTTP for its engine."""
        return self.process.node_rank == 0

    @property
    def pid(self) -> int | None:
        """The keeper, parent of the server and of all that the server starts; None where it was never started."""
        return None if self._keeper is None else self._keeper.pid

    def start(self) -> None:
        """Start the server; it takes tens of seconds to minutes until it is healthy. Raises EngineStartError."""
        if self._keeper is not None and self._keeper.poll() is None:
            raise EngineStartError(
                f"{self.process.name} runs already, its keeper is pid {self._keeper.pid}; stop it first"
            )
        check_exposure(self.process, self._secret)
        check_checkpoint(self.process, boot_checkpoint(self._config))
        check_ports_free(self.process)
        scratch = self._scratch = Path(
            tempfile.mkdtemp(prefix="r1-engine-", dir=_scratch_base(self._inherited.get(SCRATCH)))
        )
        try:
            self._keeper = self._start_keeper(scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise

    def _start_keeper(self, scratch: Path) -> subprocess.Popen[bytes]:
        environment = engine_environment(self._config, self.process, self._inherited, scratch)
        key_file = None
        if self._secret is not None:
            key_file = scratch / "key"
            write_key(key_file, self._secret)
        argv = self._arguments.argv(key_file=key_file)
        self.log = _unused_log(self._logs, self.process.name)
        with open(self.log, "xb") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(self._grace_s), str(scratch), *argv],
                env=environment,
                cwd=scratch,
                # It ends when we do, whatever kills us.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> EngineExit | None:
        """How the server ended; None while it runs. Raises EngineStartError if it was never started."""
        if self._keeper is None:
            raise EngineStartError(f"{self.process.name} was never started")
        code = self._keeper.poll()
        return None if code is None else engine_exit(self.process.name, code, self.log)

    async def wait_until_healthy(self, deadline_s: float) -> float:
        """Wait until the engine answers, and return the seconds that took.

        Above rank 0 it is the engine's rank 0 that must answer. Raises EngineStartError when the process ends first or
        the deadline passes, with what the log says.
        """
        began = time.monotonic()
        while True:
            healthy = await self.control.is_healthy()
            # Looked at second: what answers on the port of a server that has ended is not that server.
            if (end := self.ended()) is not None:
                raise EngineStartError(f"{end.name} did not come up: it {end.told}")
            if healthy:
                await self._check_guarded()
                with contextlib.suppress(EngineControlError):  # it serves all the same
                    await self.control.freeze_garbage()  # SGLang's own try has no key
                return time.monotonic() - began
            waited = time.monotonic() - began
            if waited > deadline_s:
                raise EngineStartError(
                    f"{self.process.name} does not answer at {self.process.url}/health after {waited:.0f} s"
                    f" (deadline {deadline_s:.0f} s); {_said(self.log)}"
                )
            await asyncio.sleep(_POLL_S)

    async def _check_guarded(self) -> None:
        """Raise EngineStartError for a server that does what anybody asks, though it was given a key."""
        try:
            guarded = self._secret is None or await self.control.refuses_strangers()
        except EngineControlError as error:
            raise EngineStartError(f"{self.process.name} answers /health, but nothing else: {error}") from error
        if not guarded:
            raise EngineStartError(
                f"{self.process.name} answers requests without its key: SGLang {self.capabilities.version} does not"
                " serve HTTP as those do that r1hpc knows; leave out what is set under sglang: about how it serves"
            )

    async def stop(self) -> None:
        """End the server and all that it started, politely, and after the grace by SIGKILL; all is gone on return."""
        server = self._keeper
        if server is not None:
            if server.poll() is None:
                _ask_to_stop(server)
                await asyncio.to_thread(_wait, server, self._grace_s + _MARGIN_S)
            if server.stdin is not None:
                server.stdin.close()
        if self._scratch is not None:
            # The keeper removes it, unless it was ended before it could.
            shutil.rmtree(self._scratch, ignore_errors=True)


def engine_exit(name: str, code: int, log: Path) -> EngineExit:
    """What the exit code of a keeper says of its server."""
    number = -code if code < 0 else code - keeper.SIGNALLED
    # Above the signals it is a code after all: 255 is what exit(-1) gives.
    if 0 < number <= max(signal.valid_signals()):
        return EngineExit(name, None, _signal_name(number), log)
    return EngineExit(name, code, None, log)


def _wait(server: subprocess.Popen[bytes], deadline_s: float) -> None:
    try:
        server.wait(deadline_s)
    except subprocess.TimeoutExpired:
        # The server dies with its keeper, the rest of the group with the server.
        server.kill()
        server.wait()


def _unused_log(logs: Path, name: str) -> Path:
    """The log of the next start: one that failed before must not be taken for this one's reason."""
    logs.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([f"{name}.log"], (f"{name}-restart{count}.log" for count in itertools.count(1)))
    return next(path for path in map(logs.joinpath, names) if not path.exists())


def _scratch_base(node_scratch: str | None) -> str:
    """The node's scratch, else the job's own temporary directory; /tmp where both are too long for Unix sockets in it.

    What lies in the node's scratch goes with it, also where the keeper is killed before it can tidy up.
    """
    bases = [base for base in (node_scratch, tempfile.gettempdir()) if base is not None]
    return next((base for base in bases if len(base) <= _LONGEST_BASE), "/tmp")


def _said(log: Path) -> str:
    lines = telling_lines(log)
    return f"its log {log} ends:\n" + "\n".join(f"    {line}" for line in lines) if lines else f"its log {log} is empty"


def _ask_to_stop(server: subprocess.Popen[bytes]) -> None:
    """Not by SIGTERM, which is blocked in every process of a run: a preemption sends it to all of them."""
    assert server.stdin is not None, "a keeper is started with a pipe"
    with contextlib.suppress(BrokenPipeError):  # it has just ended
        server.stdin.write(keeper.STOP)
        server.stdin.flush()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
