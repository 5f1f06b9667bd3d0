"""What the experts' all-to-all of one training layer moves."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.activations import dispatched_tokens, local_tokens
from r1hpc.plan.batches import Batches
from r1hpc.plan.gpu_memory import param_bytes
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.topology import Topology


@dataclass(frozen=True)
class Dispatch:
    """One dispatch of one layer, out of one GPU, with tokens routed evenly."""

    bytes_per_gpu: int
    """A plain all-to-all: one copy of a token for each of its experts."""
    nodes: int
    """Nodes that an expert-parallel group spans."""
    remote_share: float
    """Of the copies, those that leave the node."""
    remote_copies: float
    """Of one token, copies that leave the node in a plain all-to-all."""
    deduplicated_copies: int
    """At most, where each other node gets a token once (DeepEP)."""


def make_dispatch(config: Config, shape: ModelShape, topology: Topology, batches: Batches) -> Dispatch:
    """The dispatch of a full micro-batch."""
    tokens = local_tokens(config, batches)
    shard = tokens // topology.tp
    group = topology.groups("etp_ep")[0]
    nodes = len({topology.node_of(rank) for rank in group})
    remote = 1 - sum(topology.node_of(rank) == topology.node_of(group[0]) for rank in group) / len(group)
    copies = shape.num_experts_per_token
    return Dispatch(
        bytes_per_gpu=dispatched_tokens(shape, shard) * shape.hidden_size * param_bytes(config),
        nodes=nodes,
        remote_share=remote,
        remote_copies=copies * remote,
        deduplicated_copies=min(nodes - 1, copies),
    )
