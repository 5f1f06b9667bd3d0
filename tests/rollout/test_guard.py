"""Nobody drives an engine without its key, and nobody else learns the key."""

from __future__ import annotations

import asyncio
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from r1hpc.config import Config
from r1hpc.rollout.guard import Guard, Message, Receive, Scope, Send, authorization
from r1hpc.rollout.guarded_server import write_key
from r1hpc.rollout.server import EngineServer, EngineStartError
from tests.rollout.conftest import ENGINE_KEY, engine_process

KEY = "a-key"
WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer another-key"},
    {"Authorization": f"Bearer {ENGINE_KEY}x"},
    {"Authorization": f"Basic {ENGINE_KEY}"},
    {"Authorization": ENGINE_KEY},
]
DRIVING = {
    "/generate",
    "/v1/completions",
    "/abort_request",
    "/update_weights_from_tensor",
    "/update_weights_from_disk",
    "/update_weight_version",
    "/begin_weight_update",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/flush_cache",
    "/pause_generation",
    "/server_info",
    "/health",
    "/health_generate",
}
"""What must be among the paths that the server itself lists."""


def test_every_path_of_the_server_is_refused_without_the_key(engine_url: str) -> None:
    with httpx.Client(base_url=engine_url, timeout=60, trust_env=False) as client:
        listed = client.get("/openapi.json", headers=dict(authorization(ENGINE_KEY))).json()["paths"]
        asked = {(method.upper(), path) for path, methods in listed.items() for method in methods}
        assert {path for _, path in asked} >= DRIVING
        asked |= {("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/no-such-path"), ("OPTIONS", "/generate")}
        answers = {(method, path): client.request(method, path, json={}).status_code for method, path in asked}
        assert {asked: code for asked, code in answers.items() if code != 401} == {}
        for headers in WRONG:
            assert client.post("/generate", json={}, headers=headers).status_code == 401
        assert client.get("/metrics/", headers=dict(authorization(ENGINE_KEY))).status_code == 200


def test_the_key_stands_in_no_command_line_no_environment_no_file_and_no_answer(engine_server: EngineServer) -> None:
    assert engine_server.pid is not None
    keeper = psutil.Process(engine_server.pid)
    processes = [keeper, *keeper.children(recursive=True)]
    assert len(processes) >= 4
    for process in processes:
        assert ENGINE_KEY not in " ".join(process.cmdline())
        assert ENGINE_KEY not in str(process.environ())
    scratch = Path(processes[1].environ()["TMPDIR"])
    assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    assert not (scratch / "key").exists()
    log = engine_server.log.read_text()
    assert "'api_key': None" in log  # there it prints every argument that it has
    assert ENGINE_KEY not in log
    info = httpx.get(
        f"{engine_server.process.url}/server_info", headers=dict(authorization(ENGINE_KEY)), timeout=60, trust_env=False
    )
    assert info.status_code == 200
    assert ENGINE_KEY not in info.text


def test_a_key_file_is_for_its_owner_only_and_not_written_over(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_key(tmp_path / "key", KEY)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_key(tmp_path / "key", KEY)


def test_without_a_secret_no_engine_opens_to_a_network(rollout_config: Config, tmp_path: Path) -> None:
    server = EngineServer(rollout_config, replace(engine_process(), host="192.0.2.1"), tmp_path)
    with pytest.raises(EngineStartError, match=r"would listen on 192\.0\.2\.1 with no secret"):
        server.start()
    assert list(tmp_path.iterdir()) == []


class Recorder:
    """The guarded application, and the two ends of a connection."""

    def __init__(self) -> None:
        self.let_in: list[str] = []
        self.sent: list[Message] = []
        self.guard = Guard(self, KEY)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.let_in.append(scope["path"] if "path" in scope else scope["type"])

    def ask(self, **fields: Any) -> None:
        """One request; without a header, unless `fields` say so."""
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        asyncio.run(self.guard(scope | fields, self.receive, self.send))

    async def receive(self) -> Message:
        raise AssertionError("the guard reads nothing of a request")

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.sent if message["type"] == "http.response.start"]


def test_a_websocket_is_closed_and_the_servers_own_start_is_no_request() -> None:
    recorder = Recorder()
    recorder.ask(type="websocket", path="/v1/realtime")
    assert recorder.sent == [{"type": "websocket.close", "code": 1008}]
    asyncio.run(recorder.guard({"type": "lifespan"}, recorder.receive, recorder.send))
    assert recorder.let_in == ["lifespan"]


def test_two_keys_in_one_request_are_none() -> None:
    recorder = Recorder()
    shown = (b"Authorization", b"Bearer " + KEY.encode())
    recorder.ask(headers=[shown, (b"authorization", b"Bearer other")])
    recorder.ask(headers=[shown, shown])
    assert recorder.let_in == []
    assert recorder.statuses == [401, 401]
    recorder.ask(headers=[shown])
    assert recorder.let_in == ["/"]
