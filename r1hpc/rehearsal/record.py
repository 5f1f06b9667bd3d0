"""What is known of a running cluster, published in its directory after every step of `up`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from r1hpc.errors import RehearsalError
from r1hpc.publish import publish_json
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import Namespace
from r1hpc.rehearsal.processes import ProcessId
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import Topology


@dataclass
class ClusterRecord:
    """The state of a cluster; it only says what was started, /proc says what still runs."""

    spec: ClusterSpec
    kind: Kind
    topology: Topology
    outer: Namespace | None = None
    """The network namespace around everything; None on loopback."""

    daemons: dict[str, ProcessId] = field(default_factory=dict)
    """By name: munged, slurmctld, slurmdbd, mariadbd, and every node by its own name."""

    up_s: float | None = None
    """Seconds that `up` took; None until every node was idle once."""

    def publish(self, layout: Layout) -> None:
        """Write the record into the cluster's directory."""
        publish_json(
            layout.record,
            {
                "spec": self.spec.to_json(),
                "kind": self.kind.value,
                "topology": self.topology.to_json(),
                "outer": None if self.outer is None else asdict(self.outer),
                "daemons": {name: asdict(process) for name, process in self.daemons.items()},
                "up_s": self.up_s,
            },
        )


def read_record(layout: Layout) -> ClusterRecord | None:
    """Return the record of a cluster, None when its directory has none."""
    try:
        text = layout.record.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _from_json(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise RehearsalError(f"{layout.record}: not a record of this version ({error!r}); run `down` first") from error


def _from_json(values: dict[str, Any]) -> ClusterRecord:
    outer = values["outer"]
    return ClusterRecord(
        spec=ClusterSpec.from_json(values["spec"]),
        kind=Kind(values["kind"]),
        topology=Topology.from_json(values["topology"]),
        outer=None if outer is None else Namespace(ProcessId(**outer["member"]), outer["network"]),
        daemons={name: ProcessId(**process) for name, process in values["daemons"].items()},
        up_s=values["up_s"],
    )
