"""The optimizer's states of a weight, by the names that Megatron gives them in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from r1hpc.train.optimizer import ParamShard

STATES = ("fp32_param", "exp_avg", "exp_avg_sq")
"""What Adam keeps of a parameter, all of it float32."""


def states_of(shard: ParamShard) -> Mapping[str, Tensor]:
    """[end - begin] float32 for each of STATES."""
    return {"fp32_param": shard.master, "exp_avg": shard.exp_avg, "exp_avg_sq": shard.exp_avg_sq}


def state_key(state: str, key: str) -> str:
    """The key of a state of the weight `key`."""
    return f"optimizer.state.{state}.{key}"
