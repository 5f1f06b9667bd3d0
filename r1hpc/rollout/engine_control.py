"""What the owner of an engine asks of its server over HTTP, besides generation: health, memory, cache, version."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import httpx

from r1hpc.errors import R1hpcError
from r1hpc.rollout.guard import authorization
from r1hpc.rollout.transport import NO_TLS

MemoryTag = Literal["weights", "kv_cache", "cuda_graph"]
ALL_TAGS: tuple[MemoryTag, ...] = ("weights", "kv_cache", "cuda_graph")
_UNAUTHORIZED = httpx.codes.UNAUTHORIZED


class EngineControlError(R1hpcError):
    """A server did not do what it was asked to."""


class EngineControl:
    """Speaks to the HTTP server of one engine."""

    def __init__(self, url: str, *, secret: str | None = None, timeout_s: float = 120.0) -> None:
        """`secret`: the engine's key. `timeout_s`: of a request; a release of memory waits for every GPU."""
        self.url = url
        self._headers = authorization(secret)
        self._timeout_s = timeout_s

    async def is_healthy(self, timeout_s: float = 5.0) -> bool:
        """Whether the server answers; generates nothing."""
        try:
            async with self._client(timeout_s) as client:
                return (await client.get("/health")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def refuses_strangers(self, timeout_s: float = 30.0) -> bool:
        """Whether the server refuses who does not show its key."""
        async with _client(self.url, {}, timeout_s) as stranger:
            reply = await self._sent(stranger, "GET", "/model_info", None, expected=(httpx.codes.OK, _UNAUTHORIZED))
        return reply.status_code == _UNAUTHORIZED

    async def generates(self, timeout_s: float = 30.0) -> bool:
        """Whether the server can generate a token now, every one of its GPUs taking part."""
        try:
            async with self._client(timeout_s) as client:
                return (await client.get("/health_generate")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async def freeze_garbage(self) -> None:
        """Spare what is loaded by now from garbage collection, which would stop the engine for it again and again."""
        await self._post("/freeze_gc", None)

    async def release_memory(self, tags: Sequence[MemoryTag] = ALL_TAGS) -> None:
        """Give GPU memory back; the engine must be idle. Released weights are lost: they have to be sent again."""
        await self._post("/release_memory_occupation", {"tags": list(tags)})

    async def resume_memory(self, tags: Sequence[MemoryTag] = ALL_TAGS) -> None:
        """Take GPU memory again: weights first, then what is sent into them, then the cache and the graphs."""
        await self._post("/resume_memory_occupation", {"tags": list(tags)})

    async def flush_cache(self) -> None:
        """Forget every cached prefix: after an update they belong to other weights. The engine must be idle."""
        await self._post("/flush_cache", None)

    async def weight_version(self) -> str:
        """The version that the server gives its weights."""
        async with self._client(self._timeout_s) as client:
            reply = await self._sent(client, "GET", "/model_info", None)
        return str(reply.json()["weight_version"])

    async def set_weight_version(self, version: str) -> None:
        """Have the server give this version with every token from now on. The engine must be idle."""
        await self._post("/update_weight_version", {"new_version": version, "abort_all_requests": False})

    async def begin_weight_update(self) -> None:
        """Open an update, where the version of SGLang knows that."""
        await self._post("/begin_weight_update", {"selector": "target"})

    async def update_weights(self, payloads: Sequence[str], loader: str, timeout_s: float | None = None) -> None:
        """Hand each tensor-parallel rank its payload, in their order, and wait until the loader has returned on all."""
        body = {"serialized_named_tensors": list(payloads), "load_format": loader, "flush_cache": False}
        await self._post("/update_weights_from_tensor", body, timeout_s)

    async def end_weight_update(self) -> None:
        """Close an update; refused where none is open."""
        await self._post("/end_weight_update", {})

    async def _post(self, path: str, body: dict[str, Any] | None, timeout_s: float | None = None) -> None:
        async with self._client(timeout_s or self._timeout_s) as client:
            await self._sent(client, "POST", path, body)

    async def _sent(
        self,
        client: httpx.AsyncClient,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        expected: Collection[int] = (httpx.codes.OK,),
    ) -> httpx.Response:
        try:
            reply = await client.request(method, path, json=body)
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            raise EngineControlError(
                f"{self.url}{path}: no answer ({cause}); the engine has to be restarted"
            ) from error
        if reply.status_code not in expected:
            raise EngineControlError(f"{self.url}{path}: refused with {reply.status_code}: {reply.text.strip()[:500]}")
        return reply

    def _client(self, timeout_s: float) -> httpx.AsyncClient:
        return _client(self.url, self._headers, timeout_s)


def _client(url: str, headers: Mapping[str, str], timeout_s: float) -> httpx.AsyncClient:
    # No proxy of the site between the nodes of a run.
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, trust_env=False, verify=NO_TLS)
