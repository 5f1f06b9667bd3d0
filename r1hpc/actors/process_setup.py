"""What an actor's process is before torch is loaded in it: environment, cores, and a log of its own."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

ALL_GPUS: Mapping[str, str] = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
"""Every actor sees all GPUs that the job has on the host, in one order, and takes its own by index.

Ray would show each its own as number 0. A trainer lends its engine memory by CUDA IPC, whose handles name a GPU by its
number: they are opened on the GPU that has it in the engine's process, which must be the same one. NCCL, too, finds
NVLink paths to GPUs that it sees.
"""

_CUDA: Mapping[str, str] = {
    # As the recipe starts its trainers: kernels of one layer are launched in the order in which they overlap.
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
    # NCCL's buffers as plain allocations: through the virtual memory API they cost more, and stay while we sleep.
    "NCCL_CUMEM_ENABLE": "0",
}
_CPU: Mapping[str, str] = {
    # Compiling costs seconds in every rank, and saves none on tiny models.
    "TORCHDYNAMO_DISABLE": "1",
}

MANY_CORES = 8
"""From here on a core less is no loss that anyone would see."""


def trainer_environment(device: str, interface: str | None) -> dict[str, str]:
    """Of a trainer's process, besides what it inherits from its raylet; interface: of its process groups."""
    own = {**ALL_GPUS, **(_CPU if device == "cpu" else _CUDA), "TOKENIZERS_PARALLELISM": "false"}
    if interface is not None:
        own |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    return own


def share_cores(slots: int) -> int:
    """Let this process compute with its share of the cores that the job has on this machine; returns how many.

    slots: of all hosts on it, since threads that are more than the cores wait for each other. To be called before torch
    is loaded: OpenMP reads its variables once, and Ray has set them to the CPUs that it counts for the actor, which are
    not cores. Of many, one is left to the engine beside, Ray and the driver: threads wait for the one that shares its
    core with whoever polls, and then all take twice as long.
    """
    share = max(1, len(os.sched_getaffinity(0)) // slots)
    cores = share if share < MANY_CORES else share - 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(cores)
    return cores


def log_to(path: Path, level: int) -> None:
    """Send everything that this process says to a file: our log, and what libraries write to the standard streams.

    A rank that is started again in the same attempt goes on in the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each look whether a server is healthy
