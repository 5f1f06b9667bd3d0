"""What megatron-core needs in a process with a GPU whose default process group has gloo beside NCCL."""

from __future__ import annotations

from functools import partial

from megatron.core import parallel_state


def patch() -> None:
    """Put these in Megatron's place, for good."""
    # Its groups would be like the default one, and each would connect its ranks by gloo, which none of them uses.
    parallel_state.create_group = partial(parallel_state.create_group, backend="nccl")
