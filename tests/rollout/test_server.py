"""A real SGLang server: how it comes up, what it answers, and how it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from r1hpc.rollout.guard import authorization
from r1hpc.rollout.server import EngineServer
from tests.rollout.conftest import ENGINE_KEY

LONG = {
    "rid": "long",
    "input_ids": [5, 6, 7],
    "sampling_params": {"temperature": 1.0, "max_new_tokens": 2000, "ignore_eos": True},
    "return_logprob": True,
    "stream": True,
}


def test_health_does_not_wait_for_a_token(engine_server: EngineServer) -> None:
    assert asyncio.run(engine_server.control.is_healthy())
    assert asyncio.run(engine_server.control.generates())


def test_what_is_loaded_can_be_spared_from_garbage_collection(engine_server: EngineServer) -> None:
    asyncio.run(engine_server.control.freeze_garbage())
    assert asyncio.run(engine_server.control.generates())


def test_an_abort_ends_a_request_with_the_tokens_that_it_had(engine_url: str) -> None:
    async def abort_at_the_third_token() -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        async with (
            client_of(engine_url) as client,
            client.stream("POST", "/generate", json=LONG) as reply,
        ):
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    parts.append(json.loads(line.removeprefix("data: ")))
                if len(parts) == 3:
                    await client.post("/abort_request", json={"rid": "long"})
        return parts

    parts = asyncio.run(abort_at_the_third_token())
    tokens = [token for part in parts for token in part["output_ids"]]
    assert parts[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    assert 3 <= len(tokens) < 2000
    assert [entry[1] for part in parts for entry in part["meta_info"]["output_token_logprobs"]] == tokens


def test_memory_is_released_by_tag_and_the_server_generates_the_same_after_the_resume(
    engine_server: EngineServer,
) -> None:
    async def cycle() -> tuple[list[int], list[int]]:
        control = engine_server.control
        before = await greedy(engine_server.process.url)
        await control.release_memory(("kv_cache",))
        await control.release_memory(("weights",))
        await control.resume_memory(("weights",))
        await control.resume_memory(("kv_cache",))
        await control.flush_cache()
        return before, await greedy(engine_server.process.url)

    before, after = asyncio.run(cycle())
    assert len(before) == 8
    assert before == after


async def greedy(url: str) -> list[int]:
    body = {"input_ids": [5, 6, 7], "sampling_params": {"temperature": 0.0, "max_new_tokens": 8, "ignore_eos": True}}
    async with client_of(url) as client:
        return list((await client.post("/generate", json=body)).json()["output_ids"])


def client_of(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, headers=authorization(ENGINE_KEY), timeout=60, trust_env=False)
