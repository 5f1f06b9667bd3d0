"""A real SGLang server that is given weights by two trainer ranks, at TP2 EP2, of which the second stands beside it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from r1hpc.config import Config
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.dispatch import Dispatcher, DispatchLimits, NoEngineError
from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.guard import authorization
from r1hpc.rollout.protocol import Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.server import EngineServer
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncTarget
from r1hpc.sync.publish import EngineEndpoint, SyncReport, publish
from r1hpc.train.actor import TrainActor
from r1hpc.train.schedule import collate_here
from r1hpc.types import Sample
from tests.rollout.conftest import engine_process
from tests.sync.beside import Packed, bytes_of, order_of, packed, publisher, receive_all, unpacked
from tests.sync.conftest import for_trainer
from tests.sync.driven import DrivenRanks, Extra, drive
from tests.sync.shelf_server import ShelfServer
from tests.train.parity.run import Case, Grid, on_every_rank

# The start of a server and the whole story are the first test's.
pytestmark = pytest.mark.timeout(480)

KEY = "key-of-this-test"
PROMPTS = [[1, 5, 6, 7, 8], [1, *range(40, 61)], [1, 9]]
TOKENS = 32
CLOSE = 1e-4
START_S = 240.0
TIMEOUT_S = 60.0
SHELF = (SyncTarget("shelf", (0,)),)
REQUEST = Request(numpy.asarray([1, 5, 6, 7], dtype=numpy.int32), SamplingParams(1.0, 1.0, -1, 8), "a")


@dataclass(frozen=True)
class Told:
    """What happened, as the driver saw it."""

    first: SyncReport
    first_gap: float
    first_versions: set[int]
    tampered: Mapping[str, tuple[SyncReport, str]]
    """By what was done to the payloads: and the version that the engine said it had then."""
    refused: bool
    healed: SyncReport
    healed_gap: float
    checked: SyncReport
    rounded: SyncReport
    rounded_tensors: Mapping[str, Packed]
    rounded_samples: list[Sample]
    killed: SyncReport
    survivor_version: str
    survivor_names: set[str]


@pytest.fixture(scope="module")
def server(engine_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    """A server of these tests' own: they kill it."""
    own = EngineServer(engine_config, engine_process(), tmp_path_factory.mktemp("logs"), secret=KEY)
    own.start()
    try:
        asyncio.run(own.wait_until_healthy(START_S))
        yield own
    finally:
        asyncio.run(own.stop())


@pytest.fixture(scope="module")
def told(server: EngineServer, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The whole story, once."""
    models = for_trainer(tiny_checkpoint, tmp_path_factory.mktemp("trained") / "torch_dist")

    def work(actor: TrainActor) -> Told | None:
        give_other_weights(actor)
        senders = {form: publisher(actor, form, 1 << 18) for form in (SyncForm.PLAIN, SyncForm.DEQUANTIZED)}
        extras: dict[str, Extra] = {
            "logprobs": lambda samples: logprobs(actor, samples),
            "shelve": lambda: packed(receive_all(senders[SyncForm.DEQUANTIZED], SHELF)[1].tensors),
        }
        return drive(DrivenRanks(senders, extras), lambda ranks: story(ranks, server))

    told = on_every_rank(Case(Grid(tp=2, ep=2)), models, tmp_path_factory.mktemp("ranks"), work)[0]
    assert told is not None
    return told


async def story(ranks: DrivenRanks, server: EngineServer) -> Told:
    """From the first sync to the engine's end."""
    engine = EngineEndpoint("engine0", server.control, server.capabilities, (1,))
    first = await publish(ranks, [engine], 3, timeout_s=TIMEOUT_S)
    client = EngineClient(server.process.url, concurrency=4, name=engine.name, secret=KEY)
    dispatcher = Dispatcher(DispatchLimits(no_engine_s=1.0))
    dispatcher.add(client, 3)
    dispatcher.publish(3, list(first.published))
    dispatcher.start()
    reply = await dispatcher.generate(REQUEST, 0)
    first_versions = {span.version for span in reply.versions}
    first_gap = await gap(ranks, server)

    tampered: dict[str, tuple[SyncReport, str]] = {}
    for tamper in (flip_a_bit, leave_out_a_tensor, exchange_names):
        ranks.tamper = tamper
        report = await publish(ranks, [engine], 4, timeout_s=TIMEOUT_S)
        tampered[tamper.__name__] = report, await server.control.weight_version()
    dispatcher.publish(4, list(report.published))
    refused = False
    try:
        await dispatcher.generate(REQUEST, 0)
    except NoEngineError:
        refused = True

    ranks.tamper = Once(flip_a_bit)
    healed = await publish(ranks, [engine], 5, timeout_s=TIMEOUT_S)
    healed_gap = await gap(ranks, server)
    ranks.tamper = None
    checked = await publish(ranks, [engine], 6, timeout_s=TIMEOUT_S, full_check=True)

    ranks.form = SyncForm.DEQUANTIZED
    rounded = await publish(ranks, [engine], 7, timeout_s=TIMEOUT_S)
    rounded_samples = await asyncio.to_thread(generated, server.process.url)
    rounded_tensors = (await ranks.ask("shelve"))[0]

    async with ShelfServer().serving() as shelf:
        survivor = EngineEndpoint("engine1", EngineControl(shelf.url), server.capabilities, (0,))
        ranks.tamper = lambda bucket, _: kill(server) if bucket == 3 else None
        killed = await publish(ranks, [engine, survivor], 8, timeout_s=TIMEOUT_S)
    await dispatcher.close()
    return Told(
        first,
        first_gap,
        first_versions,
        tampered,
        refused,
        healed,
        healed_gap,
        checked,
        rounded,
        rounded_tensors,
        rounded_samples,
        killed,
        shelf.version,
        set(shelf.ranks[0].tensors),
    )


def test_the_engine_has_the_trainers_weights_and_says_their_version(told: Told) -> None:
    assert told.first.published == ("engine0",)
    assert told.first.failed == {}
    assert told.first_versions == {3}
    assert told.first_gap < CLOSE
    assert told.first.buckets > 5
    assert told.first.seconds["total"] >= told.first.seconds["send"] > 0
    engine = {part for part in told.first.seconds if part.startswith("engine_")}
    assert engine == {f"engine_{part}" for part in ("open", "checksum", "forget", "load", "compare")}


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        ("flip_a_bit", "rank 1: payload 2: the payload's "),
        ("leave_out_a_tensor", " weights were never written: model."),
        ("exchange_names", "2 weights are not what was sent: model.layers."),
    ],
)
def test_wrong_weights_leave_the_engine_without_a_version_and_refused(told: Told, tamper: str, said: str) -> None:
    report, version = told.tampered[tamper]
    assert report.published == ()
    assert report.retried == ("engine0",)
    assert said in report.failed["engine0"]
    assert version == "default"
    assert told.refused


def test_a_second_attempt_heals_it(told: Told) -> None:
    assert (told.healed.published, told.healed.retried) == (("engine0",), ("engine0",))
    assert told.healed.failed == {}
    assert told.healed_gap < CLOSE


def test_every_weight_of_the_engine_is_what_was_sent(told: Told) -> None:
    assert told.checked.published == ("engine0",)
    assert told.checked.retried == ()
    assert told.checked.buckets > 1.5 * told.first.buckets


def test_rounded_weights_give_the_logprobs_of_a_model_that_was_rounded(
    told: Told, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert told.rounded.published == ("engine0",)
    weights = {name: tensor.float() for name, tensor in unpacked(told.rounded_tensors).items()}
    for file in tiny_checkpoint.iterdir():
        if "safetensors" not in file.name:
            shutil.copy(file, tmp_path)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for sample in told.rounded_samples:
        tokens = torch.from_numpy(sample.tokens).long()
        with torch.no_grad():
            logits = model(tokens[None]).logits[0, -TOKENS - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(TOKENS), tokens[-TOKENS:]]
        assert sample.rollout_logprobs is not None
        assert (torch.from_numpy(sample.rollout_logprobs) - expected).abs().max() < CLOSE


def test_an_engine_that_is_killed_is_told_and_the_other_is_served(told: Told) -> None:
    assert told.killed.published == ("engine1",)
    assert told.killed.retried == ()
    assert list(told.killed.failed) == ["engine0"]
    assert "no answer" in told.killed.failed["engine0"]
    assert told.survivor_version == "8"
    assert told.survivor_names == set(unpacked(told.rounded_tensors))


def generated(url: str) -> list[Sample]:
    """Responses of the engine with its own log-probs."""
    body = {
        "input_ids": PROMPTS,
        "sampling_params": {"temperature": 1.0, "max_new_tokens": TOKENS, "ignore_eos": True},
        "return_logprob": True,
    }
    reply = httpx.post(f"{url}/generate", json=body, headers=authorization(KEY), timeout=120, trust_env=False)
    return [_sample(index, answer) for index, answer in enumerate(reply.raise_for_status().json())]


def _sample(index: int, answer: Mapping[str, Any]) -> Sample:
    logprobs, tokens, _ = zip(*answer["meta_info"]["output_token_logprobs"], strict=True)
    return Sample(
        index=index,
        group_index=index,
        tokens=numpy.asarray([*PROMPTS[index], *tokens], dtype=numpy.int32),
        response_len=TOKENS,
        reward=0.0,
        rollout_logprobs=numpy.asarray(logprobs, dtype=numpy.float32),
    )


def give_other_weights(actor: TrainActor) -> None:
    """As if trained: every weight by its own factor, on whatever rank it is."""
    with torch.no_grad():
        for name, parameter in actor.model.named_parameters():
            parameter.mul_(0.8 + zlib.crc32(name.encode()) % 400 / 1000)
    actor.weights.save("actor")


def logprobs(actor: TrainActor, samples: list[Sample]) -> list[Tensor]:
    """Of the responses, by the trainer."""
    batches = [collate_here(samples, [place], actor.config) for place in range(len(samples))]
    return actor.passes.logprobs(batches)


async def gap(ranks: DrivenRanks, server: EngineServer) -> float:
    """The largest difference between the engine's log-probs and the trainer's."""
    samples = await asyncio.to_thread(generated, server.process.url)
    found = (await ranks.ask("logprobs", samples))[0]
    gaps = []
    for sample, theirs in zip(samples, found, strict=True):
        assert sample.rollout_logprobs is not None
        gaps.append(float((theirs - torch.from_numpy(sample.rollout_logprobs)).abs().max()))
    return max(gaps)


def flip_a_bit(bucket: int, payloads: list[str | None]) -> None:
    """In the middle of the second bucket of weights."""
    if bucket == 2 and (payload := payloads[1]) is not None:
        data = bytes_of(order_of(payload))
        data[len(data) // 2] ^= 1


def leave_out_a_tensor(bucket: int, payloads: list[str | None]) -> None:
    """As a sender would that has a tensor less than the engine."""
    if bucket == 2 and (payload := payloads[1]) is not None:
        order = order_of(payload)
        payloads[1] = replace(order, tensors=order.tensors[:-1]).serialized()


def exchange_names(bucket: int, payloads: list[str | None]) -> None:
    """Of the samples: as if two weights of one shape had been loaded for each other."""
    if (payload := payloads[1]) is not None and (order := order_of(payload)).work == "compare":
        norms = [placed for placed in order.tensors if placed.sent.name.endswith("layernorm.weight")]
        one, other = next((a, b) for a, b in combinations(norms, 2) if a.sent.shape == b.sent.shape)
        swapped = {one.begin: other.begin, other.begin: one.begin}
        tensors = tuple(replace(placed, begin=swapped.get(placed.begin, placed.begin)) for placed in order.tensors)
        payloads[1] = replace(order, tensors=tensors).serialized()


class Once:
    """Tampers with the first sync that it sees."""

    def __init__(self, tamper: Callable[[int, list[str | None]], None]) -> None:
        self._tamper = tamper
        self._syncs = 0

    def __call__(self, bucket: int, payloads: list[str | None]) -> None:
        self._syncs += bucket == 0
        if self._syncs == 1:
            self._tamper(bucket, payloads)


def kill(server: EngineServer) -> None:
    """End the engine's keeper and with it the engine, at once."""
    assert server.pid is not None
    for pid in descendants(server.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes below this one."""
    below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*below, *(pid for child in below for pid in descendants(child))]
