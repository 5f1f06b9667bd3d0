"""Whether engines may be put to sleep: SGLang's scheduler dies of a release while requests run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from r1hpc.actors.engines import EngineGroup
from r1hpc.errors import R1hpcError

_DRAIN_S = 20.0
_POLL_S = 0.2


async def busy_engines(engines: EngineGroup, drain_s: float = _DRAIN_S) -> Mapping[str, str]:
    """Engines that still run requests, or do not say, after being told to abort them for some time; with the reason.

    A sampler has stopped them before: those that it could not stop are found here too.
    """
    names = engines.up
    reasons = await asyncio.gather(*(_why_busy(engines, name, drain_s) for name in names))
    return {name: why for name, why in zip(names, reasons, strict=True) if why}


async def _why_busy(engines: EngineGroup, name: str, drain_s: float) -> str:
    """Empty where it is idle."""
    why = "it does not answer"
    try:
        async with engines.client(name) as client, asyncio.timeout(drain_s):
            while running := await client.running():
                why = f"{running} requests still run after {drain_s:g} s of aborting them"
                await client.abort_all()
                await asyncio.sleep(_POLL_S)
            return ""
    except TimeoutError:
        return why
    except R1hpcError as error:
        return str(error)
