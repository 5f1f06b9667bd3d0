"""SGLang's HTTP endpoints without a model: a token is a pure function of its position, so any reply can be foretold.

The first prompt token says how long prompt and response are together; the last response token is `END`. A continued
response is therefore equal to an uninterrupted one, token for token, and a test can tell when a client joins wrongly.
`python -m tests.rollout.fake_engine --port 0` serves it in a process of its own and prints its URL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
from aiohttp import web
from numpy.typing import NDArray

END = 2
"""The end token of every response that was not cut short."""

FaultKind = Literal["malformed", "drop", "error500", "error400", "hang", "die", "abort", "other_version"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request, once it has sent so many tokens."""

    kind: FaultKind
    after_tokens: int = 0


def prompt_for(response_len: int, prompt_len: int = 4, salt: int = 0) -> NDArray[numpy.int32]:
    """A prompt that is answered with exactly `response_len` tokens, `END` included, where the limit allows."""
    tokens = numpy.arange(prompt_len, dtype=numpy.int32) + 3 + 7 * salt
    tokens[0] = prompt_len + response_len
    return tokens


def token_at(position: int) -> int:
    """The token at a place of prompt and response together."""
    return (position * 7919 + 13) % 997 + 3


def logprob_of(token: int) -> float:
    """The log-prob of a token; a float32 holds it exactly."""
    return -(token % 61) / 64


def expected_response(prompt: Sequence[int], max_new_tokens: int) -> tuple[list[int], list[float], str]:
    """Tokens, log-probs and finish reason of a whole response to `prompt`."""
    total = max(int(prompt[0]), len(prompt) + 1)
    end = min(total, len(prompt) + max_new_tokens)
    tokens = [END if place == total - 1 else token_at(place) for place in range(len(prompt), end)]
    return tokens, [logprob_of(token) for token in tokens], "stop" if end == total else "length"


@dataclass(eq=False)
class _Running:
    rid: str
    aborted: asyncio.Event = field(default_factory=asyncio.Event)


class FakeEngine:
    """One engine on a loopback port. Its public fields may be set at any time."""

    def __init__(
        self,
        *,
        weight_version: str = "0",
        tokens_per_s: float = 0.0,
        latency_s: float = 0.0,
        incremental: bool = True,
        port: int = 0,
    ) -> None:
        self.weight_version = weight_version
        self.tokens_per_s = tokens_per_s
        """Of one stream; 0 is at once."""
        self.latency_s = latency_s
        """Before the first token."""
        self.incremental = incremental
        """--incremental-streaming-output: a streamed chunk holds only what is new."""
        self.healthy = True
        self.abort_is_deaf = False
        """Let /abort_request do nothing, as a wedged scheduler would."""
        self.faults: deque[Fault] = deque()
        """Taken by the next requests, one each."""
        self.requests: list[dict[str, Any]] = []
        """The body of every /generate, in order."""
        self.most_running = 0
        self.tokens_sent = 0
        self.flushes = 0
        self._running: dict[str, _Running] = {}
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT; the same after `die` and `start`."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def num_running(self) -> int:
        """Requests that have come and not been answered."""
        return len(self._running)

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        assert self._runner is not None and self._runner.server is not None
        return len(self._runner.server.connections)

    @property
    def alive(self) -> bool:
        """Whether it listens."""
        return self._runner is not None

    async def __aenter__(self) -> FakeEngine:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def start(self) -> None:
        """Listen; on the same port again after `die`."""
        app = web.Application(client_max_size=1 << 28)
        app.add_routes(
            [
                web.post("/generate", self._generate),
                web.post("/abort_request", self._abort),
                web.get("/v1/loads", self._loads),
                web.get("/health", self._health),
                web.get("/health_generate", self._health),
                web.get("/model_info", self._model_info),
                web.post("/flush_cache", self._flush),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.0)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", self._port), backlog=4096)
        self._port = listener.getsockname()[1]
        await web.SockSite(runner, listener, backlog=4096).start()
        self._runner = runner

    async def die(self) -> None:
        """Go as a killed process does: every connection is reset, nothing answers any more."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        assert runner.server is not None
        for connection in list(runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        self._running.clear()

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self.requests.append(body)
        rid = str(body["rid"])
        if rid in self._running:
            return web.json_response({"error": {"message": f"Duplicate request ID detected: {rid}"}}, status=400)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and fault.kind in ("error500", "error400"):
            return web.json_response({"error": {"message": "scripted"}}, status=int(fault.kind[-3:]))
        running = self._running[rid] = _Running(rid)
        self.most_running = max(self.most_running, self.num_running)
        try:
            chunks = self._chunks(body, running, fault, http)
            return await (self._stream(http, chunks) if body.get("stream") else self._whole(chunks))
        finally:
            self._running.pop(rid, None)

    async def _stream(self, http: web.Request, chunks: AsyncIterator[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        async for chunk in chunks:
            await response.write(b"data: " + chunk + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _whole(self, chunks: AsyncIterator[bytes]) -> web.Response:
        last = b""
        async for chunk in chunks:
            last = chunk
        return web.Response(body=last, content_type="application/json")

    async def _chunks(
        self, body: dict[str, Any], running: _Running, fault: Fault | None, http: web.Request
    ) -> AsyncIterator[bytes]:
        prompt: list[int] = body["input_ids"]
        tokens, logprobs, reason = expected_response(prompt, body["sampling_params"]["max_new_tokens"])
        version = "999" if fault is not None and fault.kind == "other_version" else self.weight_version
        await self._sleep(self.latency_s, running)
        sent = 0
        for end in _chunk_ends(len(tokens), body["sampling_params"].get("stream_interval") or 1, fault):
            if self.tokens_per_s:
                await self._sleep((end - sent) / self.tokens_per_s, running)
            if running.aborted.is_set():
                break
            if fault is not None and end > fault.after_tokens and fault.kind in ("malformed", "drop", "hang", "die"):
                await self._go_wrong(fault, http)
                yield b'{"text": "", "meta_info": {"output_token_logprobs": [[null]]}}'
                return
            if fault is not None and fault.kind == "abort" and end > fault.after_tokens:
                break
            begin = sent if self.incremental and body.get("stream") else 0
            self.tokens_sent += end - sent
            sent = end
            if end < len(tokens):
                yield _reply(body, tokens, logprobs, (begin, end), version, None)
            else:
                yield _reply(body, tokens, logprobs, (begin, end), version, {"type": reason})
                return
        begin = sent if self.incremental and body.get("stream") else 0
        yield _reply(body, tokens, logprobs, (begin, sent), version, {"type": "abort", "message": "Abort request"})

    async def _go_wrong(self, fault: Fault, http: web.Request) -> None:
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "drop" and http.transport is not None:
            http.transport.abort()
        if fault.kind == "die":
            # Not awaited: dying ends the handler that this runs in.
            self._dying = asyncio.ensure_future(self.die())
            await asyncio.Event().wait()

    async def _sleep(self, seconds: float, running: _Running) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(running.aborted.wait(), seconds)

    async def _abort(self, http: web.Request) -> web.Response:
        body = await http.json()
        for rid, running in self._running.items():
            # SGLang takes the id as a prefix.
            if not self.abort_is_deaf and (body.get("abort_all") or (body["rid"] and rid.startswith(body["rid"]))):
                running.aborted.set()
        return web.Response()

    async def _loads(self, _: web.Request) -> web.Response:
        load = {"dp_rank": 0, "num_running_reqs": self.num_running, "num_waiting_reqs": 0}
        return web.json_response({"version": "fake", "loads": [load]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _model_info(self, _: web.Request) -> web.Response:
        return web.json_response({"model_path": "fake", "weight_version": self.weight_version})

    async def _flush(self, _: web.Request) -> web.Response:
        if self._running:
            return web.Response(status=400, text="Flush cache failed.")
        self.flushes += 1
        return web.Response(text="Cache flushed.")


def _chunk_ends(num_tokens: int, interval: int, fault: Fault | None) -> Iterator[int]:
    """Where chunks end, as SGLang does it: the first token at once, then each `interval` tokens, then the last."""
    ends = {*range(1, num_tokens, interval), num_tokens}
    if fault is not None and 0 < fault.after_tokens < num_tokens:
        ends.add(fault.after_tokens)
    yield from sorted(ends)


def _reply(
    body: dict[str, Any],
    tokens: list[int],
    logprobs: list[float],
    part: tuple[int, int],
    version: str,
    finish: dict[str, Any] | None,
) -> bytes:
    begin, end = part
    meta: dict[str, Any] = {
        "id": body["rid"],
        "finish_reason": finish,
        "prompt_tokens": len(body["input_ids"]),
        "completion_tokens": end,
        "weight_version": version,
    }
    if body.get("return_logprob"):
        rows = zip(logprobs[begin:end], tokens[begin:end], strict=True)
        meta["output_token_logprobs"] = [[logprob, token, None] for logprob, token in rows]
        meta["output_token_logprobs_length"] = end
    if finish is not None:
        meta["weight_versions"] = [{"version": version, "start": 0, "end": end}]
    return json.dumps({"text": "", "output_ids": tokens[begin:end], "meta_info": meta}).encode()


async def _serve(port: int, tokens_per_s: float) -> None:
    async with FakeEngine(port=port, tokens_per_s=tokens_per_s) as engine:
        print(engine.url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="a fake engine in a process of its own")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens-per-s", type=float, default=0.0)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(arguments.port, arguments.tokens_per_s))
