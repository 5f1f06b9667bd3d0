"""SGLang's endpoints of a weight update, over a shelf instead of a model; and what can go wrong there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.sync.beside import Receiver, answer, order_of


class ShelfServer:
    """An engine of as many ranks as payloads come."""

    def __init__(self) -> None:
        self.ranks: list[Receiver] = []
        self.version = "default"
        self.versions: list[str] = []
        """Every one that it was given, in order."""
        self.open = False
        self.num_payloads = 0
        self.url = ""
        self.hang_at: int | None = None
        self.silent_at: int | None = None
        """From this payload on nothing is read or answered, though HTTP says that all went well."""
        self.fault_at: dict[int, str] = {}
        self.refuse_at: int | None = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ShelfServer]:
        """Listen on a free port of loopback."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/health", self._fine)
        app.router.add_post("/flush_cache", self._fine)
        app.router.add_get("/model_info", self._model_info)
        app.router.add_post("/update_weight_version", self._set_version)
        app.router.add_post("/begin_weight_update", self._begin)
        app.router.add_post("/end_weight_update", self._end)
        app.router.add_post("/update_weights_from_tensor", self._update)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _fine(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _model_info(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _set_version(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        self.versions.append(self.version)
        return web.json_response({})

    async def _begin(self, request: web.Request) -> web.Response:
        if self.open:
            return web.json_response({"message": "a weight-update session is already open"}, status=400)
        self.open, self.num_payloads, self.ranks = True, 0, []
        return web.json_response({})

    async def _end(self, request: web.Request) -> web.Response:
        if not self.open:
            return web.json_response({"message": "no weight-update session is open"}, status=400)
        self.open = False
        return web.json_response({})

    async def _update(self, request: web.Request) -> web.Response:
        body = await request.json()
        payloads, number = body["serialized_named_tensors"], self.num_payloads
        self.num_payloads += 1
        if number == self.hang_at:
            await asyncio.sleep(3600)
        if number == self.refuse_at:
            return web.json_response({"message": "no room"}, status=400)
        if self.silent_at is not None and number >= self.silent_at:
            return web.json_response({"success": True})
        self.ranks = self.ranks or [Receiver() for _ in payloads]
        for rank, payload in zip(self.ranks, payloads, strict=True):
            if number in self.fault_at:
                answer(order_of(payload), self.fault_at[number])
            else:
                rank.take(payload)
        return web.json_response({"success": True})
