"""The Ray actor that owns one process of an engine: starts it, watches it, ends it, and takes it along if it dies."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import ray

from r1hpc.actors.process_setup import log_to
from r1hpc.config import Config
from r1hpc.rollout.placement import EngineProcess
from r1hpc.rollout.server import EngineExit, EngineServer


@ray.remote(max_restarts=0, max_task_retries=0)
class EngineNode:
    """One event loop: it says how the server is while somebody waits for it."""

    def __init__(self, config: Config, process: EngineProcess, logs: Path, secret: str | None) -> None:
        log_to(logs / f"{process.name}-owner.log", logging.INFO)
        self._server = EngineServer(config, process, logs, secret=secret)

    async def where(self) -> tuple[int, list[str]]:
        """Pid, and the GPUs that Ray gave it: the first of the server's."""
        return os.getpid(), list(ray.get_runtime_context().get_accelerator_ids()["GPU"])

    async def start(self) -> int:
        """Start the server; returns the pid of its keeper. Raises EngineStartError."""
        self._server.start()
        assert self._server.pid is not None
        return self._server.pid

    async def wait_until_healthy(self, deadline_s: float) -> float:
        """Wait until the engine answers; returns the seconds that took. Raises EngineStartError."""
        return await self._server.wait_until_healthy(deadline_s)

    async def ended(self) -> EngineExit | None:
        """How the server ended; None while it runs."""
        return self._server.ended()

    async def stop(self) -> None:
        """End the server and all that it started; returns when it is gone."""
        await self._server.stop()
