"""Stand-in for SGLang's compiled kernels, of which there is no build for CPUs without AMX.

SGLang on CPU asks for `torch.ops.sgl_kernel.convert_weight_packed`, finds none and takes its paths in plain torch;
only the function below is called on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from standin import stand_in  # type: ignore[import-not-found]

if TYPE_CHECKING:
    from torch import Tensor

__version__ = "0.4.10"
"""SGLang refuses to start with an older one."""

# SGLang catches the ImportError of these two and goes on without.
stand_in(__name__, missing=("scalar_type", "allreduce"))


def assign_req_to_token_pool_cpu(
    requests: Tensor, table: Tensor, starts: Tensor, ends: Tensor, slots: Tensor, pool_length: int
) -> None:
    """Write the cache slots of each request's new tokens, [starts, ends) of its row, into the table of all requests."""
    taken = 0
    for request, start, end in zip(requests.tolist(), starts.tolist(), ends.tolist(), strict=True):
        table[request, start:end] = slots[taken : taken + end - start]
        taken += end - start
