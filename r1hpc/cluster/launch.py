"""What the preflight hands to the agents and the driver: the judged hosts and how to start on them."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from r1hpc.cluster.hosts import ClusterHost, machine_index
from r1hpc.cluster.ports import PortBand, band
from r1hpc.errors import ClusterError
from r1hpc.publish import publish_json


@dataclass(frozen=True)
class Launch:
    """Everything that an agent needs; it reads no configuration, so that it is there in a blink."""

    run_id: str
    device: str
    """cuda or cpu"""
    hosts: tuple[ClusterHost, ...]
    """In hostfile order; the first is the head."""
    port_base: int
    port_span: int
    object_store_bytes: int
    """Of one host."""
    bring_up_timeout_s: float
    joins_at_once: int
    """Hosts that may join Ray at the same time: all, unless hosts share a machine and with it its CPUs."""

    @property
    def head(self) -> ClusterHost:
        """Where Ray's head and the driver run."""
        return self.hosts[0]

    def ports(self, host: ClusterHost) -> PortBand:
        """The ports of a host."""
        return band(self.port_base, self.port_span, machine_index(self.hosts, host.name))

    @property
    def ray_address(self) -> str:
        """address:port of Ray's global control store."""
        address = f"[{self.head.address}]" if ":" in self.head.address else self.head.address
        return f"{address}:{self.ports(self.head).gcs}"


def write_launch(path: Path, launch: Launch) -> None:
    """Publish launch.json."""
    publish_json(path, asdict(launch))


def read_launch(path: Path) -> Launch:
    """Read launch.json. Raises ClusterError when the preflight has not written it."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterError(f"{path} is missing: the preflight writes it, and it did not pass") from None
    return Launch(**record | {"hosts": tuple(ClusterHost(**host) for host in record["hosts"])})


def write_secret(path: Path) -> None:
    """Make the attempt's secret, readable by its owner only: strangers may reach our ports, but not this file."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(32))


def read_secret(path: Path) -> bytes:
    """The attempt's secret."""
    return path.read_bytes()


def engine_key(secret: bytes) -> str:
    """The key of an attempt's engines, made of its secret: who learns it cannot speak to Ray with it."""
    # Another digest than the roll call's, which answers challenges: none of its answers can be this key.
    return hmac.new(secret, b"r1hpc engines", "sha512").hexdigest()
