"""A real SGLang server on CPU with the tiny R1 in bf16 files, one for the whole test run."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc.cluster.ports import PortBand
from r1hpc.config import Config, load_config
from r1hpc.rollout.placement import PORTS_PER_ENGINE, EngineHost, EngineProcess, place_engines
from r1hpc.rollout.server import EngineServer

ROOT = Path(__file__).parents[2]
ENGINE_KEY = "the-key-of-the-shared-engine"
START_S = 240.0
"""Deadline of a server's start: 25 s on a quiet machine."""


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny R1 with bf16 weights and its tokenizer: a directory that transformers and SGLang load."""
    from r1hpc.rehearsal.tiny_model import write_tiny_model  # brings torch, which most tests here do without

    out = tmp_path_factory.mktemp("model") / "tiny-r1-bf16"
    write_tiny_model(out, fp8=False, mtp=False)
    return out


@pytest.fixture(scope="session")
def rollout_config(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The rehearsal's configuration on the tiny checkpoint."""
    work = tmp_path_factory.mktemp("work")
    overrides = [f"vars.WORK={work}", f"ckpt.bf16_checkpoint={tiny_checkpoint}"]
    return load_config(ROOT / "tests" / "pipeline.yaml", overrides=overrides).config


@pytest.fixture(scope="session")
def engine_server(rollout_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    """A healthy server that all tests share, with ENGINE_KEY: leave it idle, awake and on its weights."""
    server = EngineServer(rollout_config, engine_process(), tmp_path_factory.mktemp("logs"), secret=ENGINE_KEY)
    server.start()
    try:
        asyncio.run(server.wait_until_healthy(START_S))
        yield server
    finally:
        asyncio.run(server.stop())


@pytest.fixture(scope="session")
def engine_url(engine_server: EngineServer) -> str:
    """Where the shared server listens."""
    return engine_server.process.url


def engine_process(index: int = 0) -> EngineProcess:
    """The place of the index-th engine, of one slot, on ports of this machine that nobody uses."""
    span = 2 * PORTS_PER_ENGINE
    band = PortBand(_free_ports(span, index) - PORTS_PER_ENGINE, span)
    return replace(place_engines([EngineHost("127.0.0.1", band)], 1, 1)[0][0], engine=index)


def _free_ports(count: int, index: int) -> int:
    """First of the ports that are free now, below those that the kernel gives to outgoing connections.

    Workers of pytest-xdist have pids that follow each other, and look for ports at the same time: each has four places.
    """
    start = 23_000 + (4 * os.getpid() + index) * count % 8_000
    return next(first for first in range(start, 32_000, count) if all(map(_is_free, range(first, first + count))))


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
