"""Whether a canary is wanted, and what it speaks for once it has passed."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import r1hpc
from r1hpc.canary.config import canary_config
from r1hpc.canary.layers import cut_layers
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.records import read_object
from r1hpc.config import Config
from r1hpc.config.dump import config_hash
from r1hpc.rundir import CanaryDir

PACKAGES = ("torch", "sglang", "sgl-kernel", "sgl-deep-ep", "megatron-core", "triton", "ray")
"""What a cycle depends on besides this package."""


def is_wanted(config: Config) -> bool:
    """Whether the configuration asks for a canary. Without engines there is nothing to compare with."""
    if config.run.canary == "never" or config.debug.replay_rollouts is not None:
        return False
    return config.run.canary == "always" or (config.hosts.device == "cuda" and config.hosts.num_nodes > 1)


def subject(config: Config, place: CanaryDir) -> dict[str, Any]:
    """All that a canary's outcome depends on, but the hosts. Raises CheckpointError where there is no whole model."""
    source = open_checkpoint(Path(config.ckpt.hf_checkpoint))
    layers = cut_layers(config, source.shape)
    hosts = config.hosts
    return {
        "config": config_hash(canary_config(config, layers, place)),
        "sync": config.sync.model_dump(mode="json"),
        "hosts": f"{hosts.num_nodes} x {hosts.gpus_per_node} {hosts.device}",
        "model": source.identity,
        "layers": layers.num_layers,
        "versions": {"r1hpc": r1hpc.__version__} | {name: _version(name) for name in PACKAGES},
    }


def has_passed(place: CanaryDir, subject: dict[str, Any]) -> bool:
    """Whether this very canary has passed already."""
    return (read_object(place.passed) or {}).get("digest") == digest(subject)


def digest(subject: dict[str, Any]) -> str:
    """Sixteen hex digits."""
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
