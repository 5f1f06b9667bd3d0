"""How Ray's processes are started: command and environment. Imports no Ray, so that an agent starts at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.scratch import SCRATCH, ray_directory

_JOINED = b"Ray runtime started"
_INHERITED = ("RAY_", "PMI", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCAL", "SUBMITIT_")
"""Variables of the launcher that brought the agent up, and of some other Ray."""


def start_command(launch: Launch, host: ClusterHost, scratch: Path) -> list[str]:
    """`ray start` of one host: every address and port explicit, no dashboard, no log monitor."""
    ports = launch.ports(host)
    first, last = ports.workers
    options = {
        "node-ip-address": host.address,
        "node-name": host.name,
        "temp-dir": ray_directory(scratch),
        "num-gpus": host.slots,
        # Logical: one for each slot's actor. Ray also starts this many idle workers ahead of time.
        "num-cpus": host.slots,
        "object-store-memory": launch.object_store_bytes,
        "node-manager-port": ports.node_manager,
        "object-manager-port": ports.object_manager,
        "metrics-export-port": ports.metrics_export,
        "dashboard-agent-listen-port": ports.agent_http,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "runtime-env-agent-port": ports.runtime_env,
        "min-worker-port": first,
        "max-worker-port": last,
        # It would copy all output of all actors through the head; each process has its own log file instead.
        "include-log-monitor": "false",
    }
    if host == launch.head:
        options |= {"port": ports.gcs, "ray-client-server-port": ports.ray_client}
        options |= {"include-dashboard": "false", "dashboard-port": ports.dashboard}
        role = ["--head", "--no-monitor"]
    else:
        role = ["--address", launch.ray_address]
    words = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role, *words]


def has_joined(log: Path) -> bool:
    """Whether `ray start`, whose output is in `log`, has said that its host is in Ray."""
    try:
        return _JOINED in log.read_bytes()
    except FileNotFoundError:
        return False


def ray_environment(
    inherited: Mapping[str, str],
    launch: Launch,
    host: ClusterHost,
    secret: Path,
    marks: Mapping[str, str],
    scratch: Path,
) -> dict[str, str]:
    """The environment of Ray, the driver and thereby of every actor: nothing of a proxy, a launcher or another Ray."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(_INHERITED) and not name.lower().endswith("_proxy")
    }
    search_path = [str(Path(__file__).resolve().parents[2]), *filter(None, [inherited.get("PYTHONPATH")])]
    ray = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # The port is open to everyone on the fabric, and Ray runs what it is sent.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(secret),
        # Trainers keep the optimizer in host memory on purpose; Ray would kill them for it.
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_worker_register_timeout_seconds": str(int(launch.bring_up_timeout_s)),
        "RAY_DEDUP_LOGS": "0",
        "RAY_COLOR_PREFIX": "0",
    }
    devices = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(host.slots)))} if launch.device == "cpu" else {}
    # setproctitle would otherwise write the title over the environment, and with it over our marks.
    own = {SCRATCH: str(scratch), "SPT_NOENV": "1", "PYTHONPATH": os.pathsep.join(search_path)}
    return kept | ray | devices | dict(marks) | own
