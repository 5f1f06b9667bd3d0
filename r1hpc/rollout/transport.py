"""Many connections to one server without the cost that httpx puts on a large pool."""

from __future__ import annotations

import itertools
import resource
import ssl

import httpx

from r1hpc.errors import R1hpcError

CONNECTIONS_PER_POOL = 32
ORDER_CONNECTIONS = 8
"""Besides those that responses hold, so that an abort or a health check never waits for one."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: without it httpx makes one for every client, which takes milliseconds, and reads certificates."""

_KEEP_ALIVE_S = 2.0
_OTHER_FILES = 256
"""Open files of a process besides its connections to engines."""


class PooledTransport(httpx.AsyncBaseTransport):
    """Deals requests to several small connection pools in turn.

    httpcore looks at every connection of a pool whenever a request begins or ends, so a pool of 1,024 spends
    milliseconds a request on it; pools of 32 spend microseconds. Each pool may hold all connections if the turns
    should ever fall so: none waits for a place.
    """

    def __init__(self, concurrency: int) -> None:
        limits = httpx.Limits(
            max_connections=concurrency + ORDER_CONNECTIONS,
            max_keepalive_connections=CONNECTIONS_PER_POOL,
            # Less than the 5 s after which SGLang's server closes an idle one: it must not do so under a new request.
            keepalive_expiry=_KEEP_ALIVE_S,
        )
        count = -(-concurrency // CONNECTIONS_PER_POOL)
        self._pools = [httpx.AsyncHTTPTransport(limits=limits, trust_env=False, verify=NO_TLS) for _ in range(count)]
        self._turns = itertools.cycle(self._pools)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` on a connection of the pool whose turn it is."""
        return await next(self._turns).handle_async_request(request)

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools:
            await pool.aclose()


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files, where need be, so that `count` connections fit.

    Beyond it a connection fails exactly as one to a dead engine does. Many sites allow 1,024 until asked for more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + _OTHER_FILES
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return
    if needed > hard != resource.RLIM_INFINITY:
        raise R1hpcError(
            f"{count} requests in flight + {_OTHER_FILES} other files = {needed} open files, but this process may have "
            f"{hard} (ulimit -Hn): raise the limit, or lower sglang.server_concurrency"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
