"""What the driver makes of engines that fail in every way; over a shelf in place of each engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from r1hpc.errors import R1hpcError
from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.versions import capabilities
from r1hpc.sync.form import SyncForm
from r1hpc.sync.publish import EngineEndpoint, SyncReport, publish
from r1hpc.train.actor import TrainActor
from tests.sync.beside import Packed, packed, publisher
from tests.sync.driven import DrivenRanks, drive
from tests.sync.shelf_server import ShelfServer
from tests.train.parity.run import Case, Grid, Models, on_every_rank

TIMEOUT_S = 60.0
"""Where nothing hangs: a machine may stand still for seconds."""
HANG_TIMEOUT_S = 16.0
"""Where an engine is waited for: a quarter of it, twice."""
KNOWN = capabilities("0.5.21")


@dataclass(frozen=True)
class Told:
    """What the driver saw."""

    reports: Mapping[str, SyncReport]
    versions: Mapping[str, list[list[str]]]
    """Of each engine, all that it was stamped with."""
    shelves: list[Mapping[str, Packed]]
    hang_s: float
    rank_failed: str
    rank_failed_versions: list[str]
    after_rank_failed: SyncReport
    files_left: list[str]
    """Of shared memory, that are open still."""


@pytest.fixture(scope="module")
def told(converted: Models, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Two ranks, each beside an engine of one."""

    def work(actor: TrainActor) -> Told | None:
        senders = {
            SyncForm.PLAIN: publisher(actor, SyncForm.PLAIN, 1 << 18),
            SyncForm.FP8: publisher(actor, SyncForm.FP8),
        }
        ranks = DrivenRanks(senders, {"spoil": lambda value: spoil(actor, value)})
        return drive(ranks, story)

    found = on_every_rank(Case(Grid(pp=2)), converted, tmp_path_factory.mktemp("ranks"), work)[0]
    assert found is not None
    return found


async def story(ranks: DrivenRanks) -> Told:
    """One failure after the other."""
    reports: dict[str, SyncReport] = {}
    versions: dict[str, list[list[str]]] = {}
    shelves: list[Mapping[str, Packed]] = []
    took: dict[str, float] = {}
    inherited = open_files()  # a rank is forked from a process that has run other tests

    async def run(what: str, timeout_s: float = TIMEOUT_S, **wrong: object) -> None:
        """Publish to two engines, of which the second goes wrong."""
        async with ShelfServer().serving() as good, ShelfServer().serving() as bad:
            for name, value in wrong.items():
                setattr(bad, name, value)
            engines = [endpoint("good", good, 0), endpoint("bad", bad, 1)]
            began = time.monotonic()
            reports[what] = await publish(ranks, engines, 5, timeout_s=timeout_s)
            took[what] = time.monotonic() - began
            versions[what] = [good.versions, bad.versions]
            if what == "fine":
                shelves.extend(packed(shelf.ranks[0].tensors) for shelf in (good, bad))

    await run("fine")
    await run("left open", open=True)
    await run("fault", fault_at={1: "no such weight"})
    await run("silent", silent_at=2)
    await run("refused", refuse_at=3)
    await run("hang", HANG_TIMEOUT_S, hang_at=1)
    async with ShelfServer().serving() as alone:
        gone = EngineEndpoint("gone", EngineControl("http://127.0.0.1:9"), KNOWN, (1,))
        reports["gone"] = await publish(ranks, [endpoint("good", alone, 0), gone], 5, timeout_s=TIMEOUT_S)

    ranks.form = SyncForm.FP8
    async with ShelfServer().serving() as shelf:
        await ranks.ask("spoil", float("nan"))
        failure = ""
        try:
            await publish(ranks, [endpoint("good", shelf, 0)], 6, timeout_s=TIMEOUT_S)
        except R1hpcError as error:
            failure = str(error)
        stamped = list(shelf.versions)
        await ranks.ask("spoil", 0.5)
        after = await publish(ranks, [endpoint("good", shelf, 0)], 7, timeout_s=TIMEOUT_S)
    left = sorted(open_files() - inherited)
    return Told(reports, versions, shelves, took["hang"], failure, stamped, after, left)


def open_files() -> set[str]:
    """Shared memory of syncs; each has a name of its own."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return {link for link in links if "r1hpc-sync" in link}


def endpoint(name: str, server: ShelfServer, rank: int) -> EngineEndpoint:
    return EngineEndpoint(name, EngineControl(server.url, timeout_s=TIMEOUT_S), KNOWN, (rank,))


def spoil(actor: TrainActor, value: float) -> None:
    """Set one element of the last rank's copy."""
    for name, tensor in actor.weights.tensors("actor").items():
        if name.endswith("linear_proj.weight"):
            tensor.view(-1)[3] = value


def test_both_engines_are_given_all_weights_and_stamped_once_at_the_end(told: Told) -> None:
    report = told.reports["fine"]
    assert (report.version, report.published, report.failed) == (5, ("good", "bad"), {})
    assert told.versions["fine"] == [["default", "5"], ["default", "5"]]
    assert told.shelves[0] == told.shelves[1]
    assert set(report.seconds) == {"gather", "quantize", "deliver", "checksum", "take", "send", "check", "total"}
    # All of the model once: parameters in float32 and a router bias; tensors begin at multiples of 256.
    sent = sum(-(-len(data) // 256) * 256 for _, _, data in told.shelves[0].values())
    assert report.bytes_per_gpu == sent


def test_an_update_that_was_left_open_is_closed_first(told: Told) -> None:
    assert told.reports["left open"].published == ("good", "bad")
    assert told.reports["left open"].retried == ()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("fault", "rank 1: payload 1: no such weight"),
        ("silent", "rank 1: payload 2: the engine's rank did not answer"),
        ("refused", "no room"),
    ],
)
def test_an_engine_that_fails_is_tried_once_more_and_ends_without_a_version(told: Told, what: str, reason: str) -> None:
    report = told.reports[what]
    assert report.published == ("good",)
    assert report.retried == ("bad",)
    assert list(report.failed) == ["bad"]
    assert reason in report.failed["bad"]
    assert told.versions[what] == [["default", "5"], ["default", "default"]]


def test_an_engine_that_hangs_does_not_cost_the_other_its_time(told: Told) -> None:
    assert told.reports["hang"].published == ("good",)
    assert "no answer (ReadTimeout)" in told.reports["hang"].failed["bad"]
    assert told.hang_s < 2 * HANG_TIMEOUT_S


def test_an_engine_that_is_gone_is_not_tried_again(told: Told) -> None:
    assert told.reports["gone"].published == ("good",)
    assert told.reports["gone"].retried == ()
    assert "no answer" in told.reports["gone"].failed["gone"]


def test_what_fails_on_one_rank_is_raised_and_no_engine_has_a_version(told: Told) -> None:
    assert "o_proj.weight" in told.rank_failed
    assert told.rank_failed_versions == ["default"]


def test_the_next_sync_starts_afresh_and_leaves_no_file_open(told: Told) -> None:
    assert told.after_rank_failed.published == ("good",)
    assert told.files_left == []
