"""Engines that do not come up, or die: what their owner is told, and that nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import tempfile
import time
from pathlib import Path

import pytest

from r1hpc.cluster.processes import RUN, descendants, marked_processes
from r1hpc.cluster.scratch import SCRATCH, make_scratch, remove_scratch
from r1hpc.config import Config, load_config
from r1hpc.rollout.server import EngineExit, EngineServer, EngineStartError, engine_exit
from tests.rollout.conftest import ROOT, START_S, engine_process


def test_a_wrong_model_path_is_told_before_anything_starts(tmp_path: Path) -> None:
    missing = tmp_path / "no-such-model"
    config = load_config(ROOT / "tests" / "pipeline.yaml", overrides=[f"ckpt.bf16_checkpoint={missing}"]).config
    server = EngineServer(config, engine_process(), tmp_path / "logs")
    with pytest.raises(EngineStartError, match=rf"engine0: {missing} is no checkpoint: it has no config.json"):
        server.start()
    assert not server.log.exists()


def test_a_server_that_ends_at_its_start_is_told_with_its_own_words(tiny_checkpoint: Path, tmp_path: Path) -> None:
    overrides = [f"ckpt.bf16_checkpoint={tiny_checkpoint}", "sglang.attention_backend=imagined"]
    config = load_config(ROOT / "tests" / "pipeline.yaml", overrides=overrides).config

    async def start() -> None:
        async with EngineServer(config, engine_process(), tmp_path) as server:
            await server.wait_until_healthy(START_S)

    with pytest.raises(EngineStartError, match="engine0 did not come up: it ended with exit code 2; its log") as raised:
        asyncio.run(start())
    message = str(raised.value)
    assert "argument --attention-backend: invalid choice: 'imagined'" in message
    assert str(tmp_path / "engine0.log") in message
    assert len(message.splitlines()) < 40


def test_a_server_that_is_not_healthy_in_time_is_told_and_its_death_is_noticed(
    rollout_config: Config, tmp_path: Path
) -> None:
    marks = {**os.environ, RUN: f"test-{os.getpid()}"}
    server = EngineServer(rollout_config, engine_process(), tmp_path, environment=marks)

    async def start_and_kill() -> EngineExit:
        async with server:
            with pytest.raises(EngineStartError, match=r"does not answer at http://127.0.0.1:\d+/health after [12] s"):
                await server.wait_until_healthy(1)
            assert server.pid is not None
            main = descendants(server.pid)[0]
            assert marked(marks[RUN]) >= {server.pid, main}
            assert server.ended() is None
            os.kill(main, signal.SIGKILL)
            return await end_of(server)

    end = asyncio.run(start_and_kill())
    assert (end.exit_code, end.signal_name) == (None, "SIGKILL")
    assert str(end).startswith("engine0 ended with SIGKILL; its log")
    assert not marked(marks[RUN])
    server.start()
    asyncio.run(server.stop())
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["engine0-restart1.log", "engine0.log"]


@pytest.mark.parametrize(
    ("code", "exit_code", "signal_name"),
    [(0, 0, None), (2, 2, None), (255, 255, None), (128 + 9, None, "SIGKILL"), (-15, None, "SIGTERM")],
)
def test_an_exit_code_above_every_signal_is_an_exit_code(
    code: int, exit_code: int | None, signal_name: str | None
) -> None:
    end = engine_exit("engine0", code, Path("no.log"))
    assert (end.exit_code, end.signal_name) == (exit_code, signal_name)


def test_a_start_that_fails_leaves_no_scratch(
    rollout_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "logs").write_text("a file where the directory of the logs should be")
    server = EngineServer(rollout_config, engine_process(), tmp_path / "logs")
    with pytest.raises(FileExistsError):
        server.start()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert server.pid is None


def test_the_scratch_of_an_engine_whose_keeper_was_killed_goes_with_that_of_its_node(
    rollout_config: Config, tmp_path: Path
) -> None:
    node = make_scratch(f"engine-test-{os.getpid()}", {})
    server = EngineServer(
        rollout_config, engine_process(), tmp_path, environment={**os.environ, SCRATCH: str(node), RUN: node.name}
    )
    try:
        server.start()
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        asyncio.run(end_of(server))
        (left,) = node.glob("r1-engine-*")
    finally:
        remove_scratch(node)
    assert not left.exists()
    deadline = time.monotonic() + 10
    while marked(node.name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked(node.name)


def test_a_node_scratch_whose_path_is_too_long_for_sockets_is_passed_over(
    rollout_config: Config, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 80)
    deep.mkdir()
    environment = {**os.environ, SCRATCH: str(deep)}
    server = EngineServer(rollout_config, engine_process(), tmp_path / "logs", environment=environment)
    server.start()
    found = list(deep.iterdir())
    asyncio.run(server.stop())
    assert found == []


def test_what_answers_at_the_port_of_a_server_that_ended_is_not_that_server(
    rollout_config: Config, tmp_path: Path
) -> None:
    process = engine_process()

    async def start_and_lose_the_port() -> None:
        async def alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        async with EngineServer(rollout_config, process, tmp_path) as server:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGTERM)
            await end_of(server)
            async with await asyncio.start_server(alive, "127.0.0.1", process.http_port):
                await server.wait_until_healthy(START_S)

    with pytest.raises(EngineStartError, match="engine0 did not come up: it ended with SIGTERM"):
        asyncio.run(start_and_lose_the_port())


def test_a_taken_port_is_named_before_anything_starts(rollout_config: Config, tmp_path: Path) -> None:
    process = engine_process()
    with socket.create_server(("127.0.0.1", process.nccl_port)):
        server = EngineServer(rollout_config, process, tmp_path)
        with pytest.raises(
            EngineStartError, match=rf"port {process.nccl_port} on 127.0.0.1 cannot be had \(Address al"
        ):
            server.start()
    assert not server.log.exists()


def test_a_server_that_was_never_started_has_no_end(rollout_config: Config, tmp_path: Path) -> None:
    server = EngineServer(rollout_config, engine_process(), tmp_path)
    with pytest.raises(EngineStartError, match="engine0 was never started"):
        server.ended()
    asyncio.run(server.stop())


def marked(run: str) -> set[int]:
    return {process.pid for process in marked_processes() if process.run_id == run}


async def end_of(server: EngineServer, deadline_s: float = 10.0) -> EngineExit:
    deadline = time.monotonic() + deadline_s
    while (end := server.ended()) is None:
        assert time.monotonic() < deadline, "the death of the server went unnoticed"
        await asyncio.sleep(0.05)
    return end
