"""The key of an engine: what a client sends with it, and what lets nobody in without it."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def authorization(key: str | None) -> Mapping[str, str]:
    """The header that shows the key; none where there is no key."""
    return {} if key is None else {"Authorization": f"Bearer {key}"}


class Guard:
    """ASGI middleware: every request must show the key, whatever its path; 401 where it does not."""

    def __init__(self, app: Application, key: str) -> None:
        self._app = app
        self._expected = authorization(key)["Authorization"].encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._has_key(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _has_key(self, scope: Scope) -> bool:
        shown = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
        return len(shown) == 1 and hmac.compare_digest(shown[0], self._expected)


async def _refuse(send: Send) -> None:
    body = b'{"error": "Unauthorized"}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": body})
