"""How the ranks are arranged: what must be equal for a rank to be the same one again."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed as dist
from megatron.core import parallel_state


def current_layout() -> dict[str, int]:
    """Sizes of Megatron's groups. Of two runs with equal sizes each rank has the same place in both."""
    return {
        "world": dist.get_world_size(),
        "tp": parallel_state.get_tensor_model_parallel_world_size(),
        "pp": parallel_state.get_pipeline_model_parallel_world_size(),
        "cp": parallel_state.get_context_parallel_world_size(),
        "ep": parallel_state.get_expert_model_parallel_world_size(),
        "etp": parallel_state.get_expert_tensor_parallel_world_size(),
    }


def show_layout(layout: Mapping[str, int]) -> str:
    """`TP2 PP2 CP1 EP2 on 8 ranks`."""
    sizes = " ".join(f"{axis.upper()}{layout.get(axis)}" for axis in ("tp", "pp", "cp", "ep"))
    return f"{sizes} on {layout.get('world')} ranks"
