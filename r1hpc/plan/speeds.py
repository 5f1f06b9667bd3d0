"""How fast weights and optimizer states move: measured on one H200 with 16 cores (docs/performance.md) or estimated."""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Speeds:
    """Bytes a second of one GPU, unless said otherwise."""

    sync_read: float
    """bf16 weights out of pinned host memory, quantised, with checksums, into payloads. Measured: 0.69 of the link."""
    sync_load: float
    """Payloads into an engine's weights. Measured."""
    fabric: float
    """Into one GPU from other nodes: NDR InfiniBand, 400 Gbit/s each way, the data sheet."""
    nvlink: float
    """Into one GPU from its neighbours. Our estimate: two thirds of an H100's 450 GB/s each way."""
    payload_s: float
    """Seconds of a payload besides its bytes: ranks agree, a request to every engine. Our estimate for many nodes."""
    wake: float
    """A trainer's weights from the host. Measured."""
    host_adam: float
    """Through the memory of a node, by 16 cores. Measured."""
    host_adam_share: float
    """The same for each GPU of a node that has as many memory channels and cores a GPU as its makers intend. Our
    estimate: two thirds of an eighth of 16 channels of DDR5-4800, which are 614 GB/s by data sheet."""


MEASURED_SPEEDS = Speeds(
    sync_read=38.0 * GB,
    sync_load=46.0 * GB,
    fabric=50.0 * GB,
    nvlink=300.0 * GB,
    payload_s=0.01,
    wake=42.5 * GB,
    host_adam=78.5 * GB,
    host_adam_share=50.0 * GB,
)
