"""Smaller runs than the rehearsal's, as KEY=VALUE over configs/rehearsal.yaml."""

from __future__ import annotations

TWO_NODES = (
    "hosts.num_nodes=2",
    "perf.pipeline_model_parallel_size=1",
    "perf.decoder_last_pipeline_num_layers=null",
)
"""Of a slot each, tensor and expert parallel; one engine over both."""

ONE_NODE = (
    *TWO_NODES,
    "hosts.num_nodes=1",
    "perf.tensor_model_parallel_size=1",
    "perf.sequence_parallel=false",
    "perf.expert_model_parallel_size=1",
    "sglang.rollout_num_gpus_per_engine=1",
)
"""Of one slot; later settings count more."""
