"""Plugin of SGLang, loaded by each of its processes through the entry point in the folder beside this file."""

from __future__ import annotations

import multiprocessing
import os


def register() -> None:
    """Let DeepSeek's latent attention, data-parallel too, run on the torch_native backend; start processes as forks."""
    if os.environ.get("SGLANG_USE_CPU_ENGINE") != "1":
        return
    _fork()
    from sglang.srt.layers.attention.torch_native_backend import (  # type: ignore[import-untyped]
        TorchNativeAttnBackend,
    )
    from sglang.srt.models.deepseek_common.attention_backend_handler import (  # type: ignore[import-untyped]
        AttentionBackendRegistry,
    )
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (  # type: ignore[import-untyped]
        AttnForwardMethod,
    )

    # SGLang's default prefills with keys and values of full width, which torch_native does not store: always absorb
    # the projections into the query and attend in the latent space instead.
    AttentionBackendRegistry.register("torch_native", lambda attention, batch: AttnForwardMethod.MLA)
    # Data-parallel ranks pad their batches to one size; this is the length of a padded row, as other backends have it.
    TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value = lambda backend: 1


def _fork() -> None:
    """Have the server's other processes forked where SGLang would spawn them, which it must where there is CUDA.

    Each would import for another 6 seconds of CPU what the server has imported already, in memory of its own.
    """
    start_method = multiprocessing.set_start_method

    def set_start_method(method: str | None, force: bool = False) -> None:
        start_method("fork" if method == "spawn" else method, force)

    multiprocessing.set_start_method = set_start_method
