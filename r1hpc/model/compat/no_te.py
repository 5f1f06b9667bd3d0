"""What megatron-core 0.19 needs where neither Transformer Engine nor a C++ compiler is installed, GPU or not."""

from __future__ import annotations

from collections.abc import Callable

from megatron.core.tensor_parallel import random
from megatron.core.transformer.moe import token_dispatcher
from torch import Tensor

from r1hpc.model.permutation import permute, unpermute


def patch() -> None:
    """Put these in Megatron's place, for good."""
    random.CheckpointWithoutOutput.__init__ = _without_fp8(random.CheckpointWithoutOutput.__init__)
    random._get_share_storage = lambda: share_storage
    token_dispatcher.permute, token_dispatcher.unpermute = permute, unpermute


def share_storage(target: Tensor, source: Tensor) -> None:
    """Give `target` and all views of it the values of `source`, below autograd, which must not see a change.

    Upstream compiles C++ for this at the first backward pass with selective recomputation: a compiler on every node,
    and a minute. This copies instead, the output of a norm.
    """
    recomputed = source.untyped_storage()
    target.untyped_storage().resize_(recomputed.nbytes())
    target.untyped_storage().copy_(recomputed, non_blocking=False)


def _without_fp8(init: Callable[..., None]) -> Callable[..., None]:
    """Upstream writes `self.fp8 = fp8 is not None`, so False turns it on: a NameError without Transformer Engine."""

    def initialize(self: random.CheckpointWithoutOutput, fp8: object = None) -> None:
        assert not fp8, "the portable spec has no fp8"
        init(self, fp8=None)

    return initialize
