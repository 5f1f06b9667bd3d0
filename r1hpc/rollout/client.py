"""One engine over HTTP: its responses, streamed, and the few orders that a rollout gives it.

What is retried here, with back-off, are only the orders: each may safely arrive twice. A response is attempted once;
the dispatcher decides where it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from r1hpc.errors import R1hpcError
from r1hpc.rollout.attention_ranks import AttentionRanks
from r1hpc.rollout.guard import authorization
from r1hpc.rollout.protocol import (
    BOOT_VERSION,
    EngineBusy,
    EngineReplyError,
    Request,
    Response,
    events,
    new_rid,
    request_body,
    status_error,
)
from r1hpc.rollout.transport import PooledTransport
from r1hpc.types import FinishReason, Generation

logger = logging.getLogger(__name__)

ORDER_ATTEMPTS = 3
_BACKOFF_S = 0.2


class EngineGone(R1hpcError):
    """No connection to an engine, or it broke: the engine has died, or is about to be found alive by a probe."""


class EngineTimeout(R1hpcError):
    """An engine answers, but not in time."""


@dataclass(frozen=True)
class Deadlines:
    """How long is waited for what, in seconds. The whole response has queue_s + tokens / slowest_tokens_per_s."""

    connect_s: float = 30.0
    """A dead engine refuses at once; this is for hosts that do not answer at all, and for a thousand at a time."""
    order_s: float = 10.0
    """An abort, a load report, a flush."""
    health_s: float = 30.0
    """SGLang itself gives its scheduler 20 s."""
    idle_s: float = 1800.0
    """Without a chunk, before the first or between two: a request that was retracted for want of KV cache stands in the
    engine's queue again. That the engine as a whole hangs is found by its health, long before."""
    queue_s: float = 1800.0
    """Before the first token: waiting in the engine's queue, then the prefill."""
    slowest_tokens_per_s: float = 4.0
    """Of one sample; a crowded H100 engine was seen at 11."""

    def response_s(self, num_tokens: int) -> float:
        """Seconds that an attempt at so many tokens may take."""
        return self.queue_s + num_tokens / self.slowest_tokens_per_s


class EngineClient:
    """The client of one engine's HTTP server. Make it inside the event loop that uses it; end it with `close`."""

    def __init__(
        self,
        url: str,
        *,
        concurrency: int,
        name: str | None = None,
        deadlines: Deadlines | None = None,
        attention_ranks: int = 1,
        secret: str | None = None,
    ) -> None:
        """attention_ranks: sglang.dp_size with enable_dp_attention, else 1. secret: the engine's key."""
        self.url = url.rstrip("/")
        self.name = name or urlsplit(url).netloc
        """In errors, and the identity of the engine over its restarts."""
        self.concurrency = concurrency
        """Requests in flight at most (sglang.server_concurrency)."""
        self.deadlines = deadlines or Deadlines()
        self._slots = asyncio.Semaphore(concurrency)
        self._attention_ranks = AttentionRanks(attention_ranks)
        self._http = httpx.AsyncClient(
            base_url=self.url,
            # The proxies of a site's environment are not for its own compute nodes.
            trust_env=False,
            transport=PooledTransport(concurrency),
            timeout=httpx.Timeout(
                self.deadlines.order_s, connect=self.deadlines.connect_s, read=self.deadlines.idle_s, pool=None
            ),
            headers={"Accept-Encoding": "identity", **authorization(secret)},
        )
        self._goodbyes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> EngineClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Tell the engine to drop what was left in the middle, then close every connection."""
        if self._goodbyes:
            await asyncio.wait(self._goodbyes)
        await self._http.aclose()

    async def generate(self, request: Request) -> Generation:
        """The whole response, or what there was when the engine was told to abort; waits for one of the slots."""
        response = Response(request, self.name)
        async with self._slots:
            return response.generation(await self.read(response))

    async def read(self, response: Response) -> FinishReason:
        """Fill `response` by one attempt, holding no slot, and give its finish reason.

        Raises EngineGone, EngineTimeout, EngineBusy, EngineReplyError or EngineRefusal; `response` keeps what came
        before, also where this is cancelled, and the engine is told to drop the rest.
        """
        request = response.request
        if request.tokens_left <= 0:
            response.finish_reason = "length"
            return "length"
        rid = new_rid(request)
        seconds = self.deadlines.response_s(request.tokens_left)
        try:
            with self._attention_ranks.take(request.prompt) as rank:
                async with asyncio.timeout(seconds):
                    await self._stream(response, request_body(request, rid, rank))
        except TimeoutError as error:
            if response.finish_reason is None:
                self._drop(rid)
                done = f"{len(response)} of {request.tokens_left} tokens"
                raise EngineTimeout(f"{self.name}: {request.request_id}: {done} after {seconds:.0f} s") from error
        except EngineGone:
            raise
        except (R1hpcError, asyncio.CancelledError):
            if response.finish_reason is None:
                self._drop(rid)
            raise
        assert response.finish_reason is not None
        return response.finish_reason

    async def _stream(self, response: Response, body: dict[str, Any]) -> None:
        self._refuse_if_closed()
        try:
            async with self._http.stream("POST", "/generate", json=body) as reply:
                if reply.status_code != 200:
                    text = (await reply.aread()).decode(errors="replace")[:500]
                    raise status_error(self.name, response.request.request_id, reply.status_code, text)
                await _read_events(reply, response)
        except httpx.HTTPError as error:
            # An answer that is complete stays one, however its connection ends.
            if response.finish_reason is None:
                raise self._transport_error(
                    error, f"{response.request.request_id} after {len(response)} tokens"
                ) from error
        if response.finish_reason is None:
            raise EngineReplyError(
                f"{self.name}: malformed reply to {response.request.request_id}: "
                f"the stream ended after {len(response)} tokens without a finish reason"
            )

    async def abort_all(self) -> None:
        """Tell the engine to end every request; each still answers with what it has."""
        await self._order("POST", "/abort_request", json={"abort_all": True})

    async def running(self) -> int:
        """Requests that the engine runs or has queued, of all its data-parallel ranks."""
        reply = self._json(await self._order("GET", "/v1/loads"))
        match reply:
            case {"loads": [*loads]}:
                with_counts = [(load.get("num_running_reqs"), load.get("num_waiting_reqs")) for load in loads]
                if all(isinstance(count, int) for counts in with_counts for count in counts):
                    return sum(sum(counts) for counts in with_counts)
        raise EngineReplyError(f"{self.name}: malformed reply of /v1/loads: {str(reply)[:200]}")

    async def flush(self) -> None:
        """Empty the prefix cache; refused (EngineRefusal) while requests run."""
        await self._order("POST", "/flush_cache")

    async def health(self) -> None:
        """Return if the engine's scheduler moves; raise EngineGone, EngineTimeout or EngineBusy if not."""
        await self._order("GET", "/health_generate", attempts=1, seconds=self.deadlines.health_s)

    async def weight_version(self) -> int:
        """The version of the weights that the engine serves; BOOT_VERSION for those that it booted from."""
        reply = self._json(await self._order("GET", "/model_info", attempts=2))
        version = reply.get("weight_version") if isinstance(reply, dict) else None
        if version == "default":
            return BOOT_VERSION
        try:
            return int(str(version))
        except ValueError:
            raise EngineReplyError(f"{self.name}: /model_info gives weight_version {version!r}") from None

    async def _order(
        self, method: str, path: str, json: Any = None, attempts: int = ORDER_ATTEMPTS, seconds: float | None = None
    ) -> httpx.Response:
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(method, path, json, seconds or self.deadlines.order_s)
            except (EngineGone, EngineBusy, EngineTimeout):
                if attempt == attempts:
                    raise
                await asyncio.sleep(_BACKOFF_S * 2 ** (attempt - 1))
        raise AssertionError("attempts >= 1")

    async def _once(self, method: str, path: str, json: Any, seconds: float) -> httpx.Response:
        self._refuse_if_closed()
        try:
            async with asyncio.timeout(seconds):
                reply = await self._http.request(method, path, json=json)
        except TimeoutError as error:
            raise EngineTimeout(f"{self.name}: no answer to {method} {path} within {seconds:g} s") from error
        except httpx.HTTPError as error:
            raise self._transport_error(error, f"{method} {path}") from error
        if reply.status_code != 200:
            raise status_error(self.name, f"{method} {path}", reply.status_code, reply.text[:500])
        return reply

    def _json(self, reply: httpx.Response) -> Any:
        try:
            return reply.json()
        except ValueError as error:
            path = reply.request.url.path
            raise EngineReplyError(f"{self.name}: reply of {path} is not JSON: {reply.text[:200]!r}") from error

    def _refuse_if_closed(self) -> None:
        if self._http.is_closed:
            raise EngineGone(f"{self.name}: its client was closed")

    def _transport_error(self, error: httpx.HTTPError, what: str) -> R1hpcError:
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        if isinstance(error, httpx.ReadTimeout):
            return EngineTimeout(f"{self.name}: {what}: nothing for {self.deadlines.idle_s:g} s")
        return EngineGone(f"{self.name}: {what}: {said}")

    def _drop(self, rid: str) -> None:
        """Tell the engine in the background to end one request that nobody waits for any more."""
        task = asyncio.get_running_loop().create_task(_quietly(self._once_abort(rid)))
        self._goodbyes.add(task)
        task.add_done_callback(self._goodbyes.discard)

    async def _once_abort(self, rid: str) -> None:
        await self._order("POST", "/abort_request", json={"rid": rid}, attempts=1)


async def _read_events(reply: httpx.Response, response: Response) -> None:
    buffer = bytearray()
    async for data in reply.aiter_raw():
        buffer += data
        for event in events(buffer):
            # What follows the end of the response, [DONE], is read but not looked at: only then can the connection be
            # used again.
            if response.finish_reason is None:
                response.add(event)


async def _quietly(order: Coroutine[Any, Any, None] | Awaitable[None]) -> None:
    try:
        await order
    except R1hpcError as error:
        logger.debug("not aborted: %s", error)
