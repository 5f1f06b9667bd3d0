"""How an attempt's end is written down, and who may overrule whom."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from r1hpc.cluster.outcome import Outcome, write_outcome, write_outcome_if_absent
from r1hpc.errors import BringUpError

LOST = Outcome(78, "lost node01: its agent is gone", ("node01",))


def test_who_lost_the_head_writes_the_outcome_only_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    write_outcome_if_absent(path, LOST)
    assert Outcome.from_json(json.loads(path.read_text())) == LOST
    write_outcome_if_absent(path, Outcome(77, "another agent's view"))
    assert Outcome.from_json(json.loads(path.read_text())) == LOST
    head = Outcome(0, "the head's word")
    write_outcome(path, head)
    assert Outcome.from_json(json.loads(path.read_text())) == head
    assert list(tmp_path.iterdir()) == [path]


def test_an_outcome_that_cannot_be_written_is_logged_and_raises_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "outcome.json"
    write_outcome(path, LOST)
    write_outcome_if_absent(path, LOST)
    assert [f"{path} cannot be written" in message for message in caplog.messages] == [True, True]


def test_a_bring_up_error_keeps_its_hosts_when_it_is_pickled() -> None:
    copy = pickle.loads(pickle.dumps(BringUpError("missing node07", ["node07"])))
    assert (str(copy), copy.hosts) == ("missing node07", ("node07",))
