"""The roll call over real sockets: who is there, who is lost, and who is turned away."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from r1hpc.cluster.channel import Channel, Message
from r1hpc.cluster.outcome import Outcome
from r1hpc.cluster.rollcall import Answers, Attendance, RollCall

SECRET = b"secret of this attempt"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Hall:
    """A roll call and its agents, polled together."""

    def __init__(self, *expected: str, silence_s: float = 20.0) -> None:
        self.address = ("127.0.0.1", _free_port())
        self.roll_call = RollCall(self.address, expected, SECRET, silence_s)
        self.agents: dict[str, Attendance] = {}
        self.heard: dict[str, list[Message]] = {}
        self.answers = Answers()

    def enter(self, name: str, secret: bytes = SECRET, silence_s: float = 20.0) -> Attendance:
        self.agents[name] = Attendance(self.address, name, secret, silence_s)
        self.heard[name] = []
        return self.agents[name]

    def until(self, ready: Callable[[], bool], deadline_s: float = 5) -> None:
        deadline = time.monotonic() + deadline_s
        while not ready():
            assert time.monotonic() < deadline, "not so in time"
            self.poll()
            time.sleep(0.01)

    def poll(self) -> None:
        for name, agent in self.agents.items():
            self.heard[name] += agent.poll()
        answers = self.roll_call.poll()
        for field in ("joined", "stops", "failures", "lost"):
            getattr(self.answers, field).extend(getattr(answers, field))

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()
        self.roll_call.close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    made = Hall("node02", "node03")
    yield made
    made.close()


def test_agents_are_missing_until_they_answer(hall: Hall) -> None:
    assert hall.roll_call.missing == ["node02", "node03"]
    hall.enter("node03")
    hall.until(lambda: hall.roll_call.present == ["node03"])
    assert hall.roll_call.missing == ["node02"]
    hall.enter("node02")
    hall.until(lambda: hall.roll_call.present == ["node02", "node03"])


def test_what_an_agent_says_arrives_with_its_name(hall: Hall) -> None:
    agent = hall.enter("node02")
    hall.until(lambda: hall.roll_call.present == ["node02"])
    agent.send({"joined": True})
    agent.send({"stop": "SIGTERM"})
    agent.send({"failed": "ray ended"})
    hall.until(lambda: bool(hall.answers.failures))
    assert hall.answers.joined == ["node02"]
    assert hall.answers.stops == ["SIGTERM at node02"]
    assert [(failure.name, failure.reason) for failure in hall.answers.failures] == [("node02", "ray ended")]


def test_an_agent_that_is_told_to_join_hears_it_and_the_others_do_not(hall: Hall) -> None:
    for name in ("node02", "node03"):
        hall.enter(name)
    hall.until(lambda: hall.roll_call.missing == [])
    hall.roll_call.tell("node03", {"join": True})
    hall.until(lambda: {"join": True} in hall.heard["node03"])
    assert {"join": True} not in hall.heard["node02"]


def test_an_agent_whose_connection_ends_is_lost_at_once(hall: Hall) -> None:
    agent = hall.enter("node02")
    hall.until(lambda: hall.roll_call.present == ["node02"])
    agent.close()
    del hall.agents["node02"]
    hall.until(lambda: bool(hall.answers.lost), deadline_s=1)
    assert [(lost.name, lost.reason) for lost in hall.answers.lost] == [("node02", "its agent is gone")]
    assert hall.roll_call.missing == ["node02", "node03"]


def test_a_silent_agent_is_lost_although_its_connection_stands() -> None:
    hall = Hall("node02", silence_s=0.3)
    hall.enter("node02")
    hall.until(lambda: hall.roll_call.present == ["node02"])
    stopped = hall.agents.pop("node02")  # as a machine without power: no more polls, no close
    hall.until(lambda: bool(hall.answers.lost), deadline_s=3)
    assert [(lost.name, lost.reason) for lost in hall.answers.lost] == [("node02", "silent for 0.3 s")]
    stopped.close()
    hall.close()


def test_beats_keep_both_ends_alive_beyond_the_silence() -> None:
    hall = Hall("node02", silence_s=3.0)
    agent = hall.enter("node02", silence_s=3.0)
    start = time.monotonic()
    hall.until(lambda: time.monotonic() - start > 4.5, deadline_s=6)
    assert hall.answers.lost == []
    assert agent.lost is None
    assert hall.roll_call.present == ["node02"]
    hall.close()


def test_who_was_itself_suspended_does_not_call_the_others_lost() -> None:
    hall = Hall("node02", silence_s=0.6)
    agent = hall.enter("node02", silence_s=0.6)
    hall.until(lambda: agent.admitted)
    time.sleep(0.8)  # all of the job at once, as gang scheduling does it
    agent.poll()
    assert agent.lost is None
    assert hall.roll_call.poll().lost == []
    assert hall.roll_call.present == ["node02"]
    del hall.agents["node02"]  # and one that is silent while we look is lost all the same
    hall.until(lambda: bool(hall.answers.lost), deadline_s=3)
    agent.close()
    hall.close()


def test_agents_notice_a_head_that_is_gone_and_one_that_is_silent(hall: Hall) -> None:
    gone, silent = hall.enter("node02"), hall.enter("node03", silence_s=0.3)
    hall.until(lambda: gone.admitted and silent.admitted)
    stop = time.monotonic() + 0.5
    while time.monotonic() < stop:
        silent.poll()
        time.sleep(0.01)
    assert silent.lost in ("silent for 0 s", "silent for 1 s")
    assert gone.lost is None
    hall.roll_call.close()
    deadline = time.monotonic() + 2
    while gone.lost is None and time.monotonic() < deadline:
        gone.poll()
    assert gone.lost == "its agent is gone"


def test_a_late_head_is_merely_late() -> None:
    agent = Attendance(("127.0.0.1", _free_port()), "node02", SECRET)
    assert agent.poll() == []
    assert agent.lost is None
    assert not agent.admitted


@pytest.mark.parametrize(
    ("name", "secret"), [("node02", b"a guess"), ("node09", SECRET)], ids=["wrong secret", "nobody's name"]
)
def test_strangers_are_turned_away(hall: Hall, name: str, secret: bytes) -> None:
    stranger = hall.enter(name, secret)
    stop = time.monotonic() + 0.5
    while time.monotonic() < stop:
        hall.poll()
    assert not stranger.admitted
    assert hall.roll_call.present == []


def test_nonsense_and_a_second_agent_of_one_name_change_nothing(hall: Hall) -> None:
    first = hall.enter("node02")
    hall.until(lambda: first.admitted or hall.roll_call.present == ["node02"])
    with socket.create_connection(hall.address) as scanner:
        scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
        second = Attendance(hall.address, "node02", SECRET)
        stop = time.monotonic() + 0.5
        while time.monotonic() < stop:
            second.poll()
            hall.poll()
        assert not second.admitted
        second.close()
    assert hall.roll_call.present == ["node02"]
    assert hall.answers.lost == []


def test_the_outcome_reaches_everyone_and_late_comers_too(hall: Hall) -> None:
    outcome = Outcome(78, "lost node03", ("node03",))
    early = hall.enter("node02")
    hall.until(lambda: hall.roll_call.present == ["node02"])
    hall.roll_call.tell_outcome(outcome)
    staying = hall.roll_call.wait_until_left(time.monotonic() + 0.2)
    assert staying == ["node02"]  # nobody polled it, so it could not leave
    hall.until(lambda: {"outcome": outcome.to_json()} in hall.heard["node02"])
    assert Outcome.from_json(hall.heard["node02"][-1]["outcome"]) == outcome
    early.close()
    del hall.agents["node02"]
    assert hall.roll_call.wait_until_left(time.monotonic() + 2.0) == []
    hall.enter("node03")
    hall.until(lambda: {"outcome": outcome.to_json()} in hall.heard["node03"])


@pytest.mark.parametrize(
    "hello",
    [
        b'{"hello": "node02", "proof": "\\u00e9"}\n',
        b'{"hello": "node02", "proof": "\\ud800"}\n',
        b"[" * 4000 + b"\n",
        b'{"hello": "' + b"x" * 5000,
    ],
    ids=["not ASCII", "no text", "nested too deep", "too long"],
)
def test_a_hello_that_no_agent_says_ends_that_connection_alone(hall: Hall, hello: bytes) -> None:
    with socket.create_connection(hall.address) as stranger:
        stranger.setblocking(False)
        hall.poll()
        stranger.sendall(hello)
        hall.enter("node02")
        hall.until(lambda: hall.roll_call.present == ["node02"])
        hall.until(lambda: _is_closed(stranger), deadline_s=1)


def _is_closed(connected: socket.socket) -> bool:
    try:
        return connected.recv(4096) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_an_agent_that_was_sent_away_before_it_was_admitted_knocks_again(hall: Hall) -> None:
    first = Attendance(hall.address, "node02", SECRET)
    while hall.roll_call.present != ["node02"]:
        first.poll()
        hall.poll()
    second = hall.enter("node02")  # its name is taken until the first one's connection ends
    stop = time.monotonic() + 0.3
    while time.monotonic() < stop:
        hall.poll()
    assert not second.admitted
    first.close()
    hall.until(lambda: hall.roll_call.present == [])
    hall.until(lambda: hall.roll_call.present == ["node02"])


def _received(channel: Channel, count: int) -> list[Message]:
    messages: list[Message] = []
    deadline = time.monotonic() + 1
    while len(messages) < count and not channel.closed and time.monotonic() < deadline:
        messages += channel.receive()
    return messages


def test_messages_survive_being_cut_anywhere_and_what_is_no_object_closes_the_channel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        channel = Channel(server.accept()[0])
    for byte in b'{"a": 1}\n{"b": [2]}\n':
        theirs.send(bytes([byte]))
    assert _received(channel, 2) == [{"a": 1}, {"b": [2]}]
    theirs.send(b'{"c"')
    assert channel.receive() == []
    theirs.send(b": 3}\n")
    assert _received(channel, 1) == [{"c": 3}]
    assert not channel.closed
    theirs.send(b"[1]\n")
    assert _received(channel, 1) == []
    assert channel.closed
    theirs.close()
