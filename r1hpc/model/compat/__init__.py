"""What megatron-core needs on a machine that lacks what it takes for granted: a GPU, Transformer Engine, apex.

Patches of a library are wrong nearly everywhere; here they stand together, each explained, and nothing happens before
`prepare`. `cpu` is for processes without a GPU only, `cuda` for those with one; `no_te` is for every process of this
project.
"""

from __future__ import annotations

from typing import Literal

import torch

from r1hpc.errors import R1hpcError
from r1hpc.model.compat import cpu, cuda, no_te

Device = Literal["cpu", "cuda", "meta"]

# A mutable global, because it records what is itself global to the process: the patches.
_prepared_for: Device | None = None


class DeviceError(R1hpcError):
    """This process cannot compute on the device that was asked for."""


def prepare(device: Device) -> None:
    """Let megatron-core build and train on `device` in this process, from now on. Call it before groups and models.

    Nothing is undone: a process is prepared for one device in its life. On cpu and meta the rewriting of "cuda" holds
    in the calling thread, and there in backward passes too.
    Raises DeviceError for a second device, and for cuda without a GPU.
    """
    global _prepared_for
    if _prepared_for == device:
        return
    if _prepared_for is not None:
        raise DeviceError(
            f"this process is prepared for {_prepared_for} and cannot be for {device} as well: patches of torch and"
            " Megatron are not undone; start another process"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("cuda was asked for, but torch finds no GPU here: set hosts.device to cpu, or check the node")
    no_te.patch()
    if device == "cuda":
        cuda.patch()
    else:
        cpu.patch(torch.device(device))
    _prepared_for = device
