"""The agents' roll call: every agent answers to the head's, so that each end of a lost node is noticed and named.

A message is one JSON object: hello, beat, joined, stop, failed from an agent; challenge, beat, join, outcome from the
head.
Neither end ever waits: both are polled by the agent's loop.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1hpc.cluster.channel import TRUSTED_BYTES, Channel, Message
from r1hpc.cluster.outcome import Outcome

BEAT_S = 2.0
SILENCE_S = 20.0
"""A peer that has said nothing for so long is lost: its machine stopped, or the network between."""
FORGIVEN_SHARE = 0.25
"""Who has not polled for longer than this share of the silence was itself suspended or starved (gang scheduling stops
whole jobs): it heard nobody in that time, which is no fault of theirs."""
_HELLO_S = 10.0
"""A stranger that does not prove itself in this time is sent away."""
_HELLO_BYTES = 4096
"""The same for one that says more than this before."""
_RECONNECT_S = 1.0
"""An agent that was sent away waits this long before it knocks again."""


@dataclass
class _Peer:
    channel: Channel
    challenge: str
    heard: float
    name: str | None = None
    """None until it has proved itself."""


@dataclass(frozen=True)
class Absence:
    """An agent that answered before and does no more."""

    name: str
    reason: str


@dataclass
class Answers:
    """What the agents said since the last poll."""

    joined: list[str] = field(default_factory=list)
    """Agents whose host is in Ray now."""
    stops: list[str] = field(default_factory=list)
    """Stop requests, as `SIGTERM at node03`."""
    failures: list[Absence] = field(default_factory=list)
    """Agents that cannot go on, with their reason."""
    lost: list[Absence] = field(default_factory=list)


class RollCall:
    """The head's end: who is there, who is lost, what they ask for."""

    def __init__(
        self, address: tuple[str, int], expected: Sequence[str], secret: bytes, silence_s: float = SILENCE_S
    ) -> None:
        """Listen on `address` for the agents named in `expected` (all but the head's own)."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family, backlog=len(expected) + 16)
        self._listener.setblocking(False)
        self._secret = secret
        self._silence_s = silence_s
        self._expected = list(expected)
        self._peers: list[_Peer] = []
        self._present: dict[str, _Peer] = {}
        self._farewell: Message | None = None
        self._beaten = 0.0
        self._polled = time.monotonic()

    @property
    def missing(self) -> list[str]:
        """Agents that have not answered yet, or are gone."""
        return [name for name in self._expected if name not in self._present]

    def poll(self) -> Answers:
        """Take in what has arrived, send what is due."""
        now, answers = time.monotonic(), Answers()
        asleep = now - self._polled if now - self._polled > self._silence_s * FORGIVEN_SHARE else 0.0
        self._polled = now
        self._accept(now)
        for peer in list(self._peers):
            peer.heard = min(now, peer.heard + asleep)
            for message in peer.channel.receive():
                peer.heard = now
                self._take(peer, message, answers)
            self._look_after(peer, now, answers)
        if now - self._beaten > BEAT_S:
            self._beaten = now
            for peer in self._present.values():
                peer.channel.send({"beat": True})
        return answers

    @property
    def present(self) -> list[str]:
        """Agents that have answered, in the order expected."""
        return [name for name in self._expected if name in self._present]

    def tell(self, name: str, message: Message) -> None:
        """Send to one agent that is present."""
        self._present[name].channel.send(message)

    def tell_outcome(self, outcome: Outcome) -> None:
        """Tell every agent how the attempt ended, and from now on those who come late: it is to leave."""
        self._farewell = {"outcome": outcome.to_json()}
        for name in self.present:
            self.tell(name, self._farewell)

    def wait_until_left(self, deadline: float) -> list[str]:
        """Wait until every agent has left, or `deadline` of the monotonic clock; returns those that did not."""
        self.poll()
        while self._present and time.monotonic() < deadline:
            time.sleep(0.05)
            self.poll()
        return sorted(self._present)

    def close(self) -> None:
        """Close every connection."""
        for peer in self._peers:
            peer.channel.close()
        self._listener.close()

    def _accept(self, now: float) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            peer = _Peer(Channel(connected, _HELLO_BYTES), secrets.token_hex(16), now)
            peer.channel.send({"challenge": peer.challenge})
            self._peers.append(peer)

    def _take(self, peer: _Peer, message: Message, answers: Answers) -> None:
        if peer.name is None:
            self._admit(peer, message)
        elif "joined" in message:
            answers.joined.append(peer.name)
        elif "stop" in message:
            answers.stops.append(f"{message['stop']} at {peer.name}")
        elif "failed" in message:
            answers.failures.append(Absence(peer.name, str(message["failed"])))

    def _admit(self, peer: _Peer, message: Message) -> None:
        name, proof = message.get("hello"), message.get("proof")
        # As bytes: compare_digest raises TypeError on a string that is not ASCII.
        expected = _proof(self._secret, peer.challenge).encode()
        genuine = isinstance(proof, str) and hmac.compare_digest(proof.encode(errors="replace"), expected)
        if not genuine or name not in self._expected or name in self._present:
            peer.channel.close()
            return
        peer.name = str(name)
        peer.channel.limit_bytes = TRUSTED_BYTES
        self._present[peer.name] = peer
        if self._farewell is not None:  # too late for anything else
            peer.channel.send(self._farewell)

    def _look_after(self, peer: _Peer, now: float, answers: Answers) -> None:
        patience = _HELLO_S if peer.name is None else self._silence_s
        reason = "its agent is gone" if peer.channel.closed else f"silent for {patience:g} s"
        if now - peer.heard > patience:
            peer.channel.close()
        peer.channel.flush()
        if peer.channel.closed:
            self._peers.remove(peer)
            if peer.name is not None:
                del self._present[peer.name]
                answers.lost.append(Absence(peer.name, reason))


class Attendance:
    """Another agent's end: answers the head, and notices when the head is gone."""

    def __init__(self, address: tuple[str, int], name: str, secret: bytes, silence_s: float = SILENCE_S) -> None:
        self._address = address
        self._silence_s = silence_s
        self._name = name
        self._secret = secret
        self._channel: Channel | None = None
        self._connect_after = 0.0
        self._heard = self._beaten = self._polled = time.monotonic()
        self.admitted = False
        """Whether the head has answered our proof."""

    def poll(self) -> list[Message]:
        """What the head said since the last call; connects, again if need be, until the head has admitted us."""
        now = time.monotonic()
        if now - self._polled > self._silence_s * FORGIVEN_SHARE:
            self._heard = min(now, self._heard + now - self._polled)
        self._polled = now
        if self._channel is not None and self._channel.closed and not self.admitted:
            self._channel, self._connect_after = None, now + _RECONNECT_S
        if self._channel is None and now >= self._connect_after:
            self._connect()
        if self._channel is None:
            return []
        messages = self._channel.receive()
        if messages:
            self._heard = now
        for message in messages:
            if "challenge" in message:
                self._channel.send({"hello": self._name, "proof": _proof(self._secret, message["challenge"])})
            else:
                self.admitted = True
        if self.admitted and now - self._beaten > BEAT_S:
            self._beaten = now
            self._channel.send({"beat": True})
        self._channel.flush()
        return messages

    @property
    def lost(self) -> str | None:
        """Why the head counts as lost; None while it does not. Before the first answer it is merely late."""
        if not self.admitted or self._channel is None:
            return None
        if self._channel.closed:
            return "its agent is gone"
        silence = self._polled - self._heard
        return f"silent for {silence:.0f} s" if silence > self._silence_s else None

    def send(self, message: Message) -> None:
        """Send to the head; goes nowhere before we are admitted."""
        if self._channel is not None:
            self._channel.send(message)

    def close(self) -> None:
        """Close the connection: the head takes that as our leave."""
        if self._channel is not None:
            self._channel.close()

    def _connect(self) -> None:
        try:
            # Refused at once while the head is not there; a machine that is down lets us wait for the second.
            self._channel = Channel(socket.create_connection(self._address, timeout=1.0))
        except OSError:
            return


def _proof(secret: bytes, challenge: str) -> str:
    return hmac.new(secret, str(challenge).encode(errors="replace"), "sha256").hexdigest()
