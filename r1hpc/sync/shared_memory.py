"""Memory that a trainer rank shares with the engine's rank beside it, and that nobody's death leaves behind.

Of a CPU it is an anonymous file (memfd): it has no name in /dev/shm, so whoever is killed on whatever line, the kernel
frees it with the last process that has it open. The other process, of the same user on the same host, opens it as
/proc/PID/fd/N. Of a GPU it is a CUDA IPC handle, as torch makes it.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import secrets
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from r1hpc.sync.outline import SyncError

_PREFIX = "r1hpc-sync-"


class HostMemory:
    """An anonymous file of this process, mapped."""

    def __init__(self, size: int) -> None:
        # What /proc/PID/fd/N is may have changed before it is opened: a name of its own tells.
        self._name = _PREFIX + secrets.token_hex(8)
        self._fd = os.memfd_create(self._name, os.MFD_CLOEXEC)
        try:
            # ftruncate would promise pages that are not there: to touch them could end the process with SIGBUS.
            os.posix_fallocate(self._fd, 0, size)
            self.tensor = torch.frombuffer(mmap.mmap(self._fd, size), dtype=torch.uint8)
            """[size] uint8"""
        except BaseException:
            os.close(self._fd)
            raise

    def ticket(self) -> dict[str, Any]:
        """What the other process needs to open it."""
        path = f"/proc/{os.getpid()}/fd/{self._fd}"
        return {"kind": "host", "path": path, "name": self._name, "size": self.tensor.numel()}

    def close(self) -> None:
        """Give it back. A process that has it mapped keeps its pages until it unmaps them."""
        os.close(self._fd)
        del self.tensor

    def disown(self) -> None:
        """The last ticket will not be used, or whoever had it open is dead."""


class DeviceMemory:
    """Memory of this process's GPU."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.tensor = torch.empty(size, dtype=torch.uint8, device=device)
        """[size] uint8"""
        self._counter: tuple[Any, ...] = ()
        """Of the last ticket: where torch counts who has it open."""

    def ticket(self) -> dict[str, Any]:
        """What the other process needs to open it. One ticket is for one opening: torch counts them."""
        torch.cuda.synchronize(self.tensor.device)
        uuid = str(torch.cuda.get_device_properties(self.tensor.device).uuid)
        # Device, handle, sizes, counters and event, in the order that torch's own pickling has them.
        shared = self.tensor.untyped_storage()._share_cuda_()  # type: ignore[no-untyped-call]
        self._counter = tuple(shared[4:6])
        plain = [{"bytes": base64.b64encode(part).decode()} if isinstance(part, bytes) else part for part in shared]
        return {"kind": "cuda", "uuid": uuid, "shared": json.dumps(plain), "size": self.tensor.numel()}

    def close(self) -> None:
        """Give it back. Torch frees it once nobody has it open."""
        del self.tensor

    def disown(self) -> None:
        """The last ticket will not be used, or whoever had it open is dead: else torch would keep the memory for it."""
        torch.UntypedStorage._release_ipc_counter(  # type: ignore[no-untyped-call]
            *self._counter, device=self.tensor.device
        )


SharedMemory = HostMemory | DeviceMemory


def allocate(size: int, device: torch.device) -> SharedMemory:
    """Memory for an engine's rank on this device."""
    return DeviceMemory(size, device) if device.type == "cuda" else HostMemory(size)


def opened(ticket: Mapping[str, Any], device: torch.device) -> Tensor:
    """The bytes behind a ticket, [size] uint8, in the process that was given it, whose model is on `device`.

    Raises SyncError where they are not what the ticket was written for.
    """
    return _opened_device(ticket, device) if ticket["kind"] == "cuda" else _opened_host(ticket)


def _opened_host(ticket: Mapping[str, Any]) -> Tensor:
    path, size = str(ticket["path"]), int(ticket["size"])
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SyncError(
            f"{path}: {error.strerror}; the trainer beside this engine has ended, or is another user's"
        ) from error
    try:
        # Before a byte is read or written: the number may be another file's by now.
        target = os.readlink(f"/proc/self/fd/{fd}")
        if target != f"/memfd:{ticket['name']} (deleted)" or os.fstat(fd).st_size != size:
            raise SyncError(f"{path}: is {target}, not the payload {ticket['name']} of {size} bytes")
        return torch.frombuffer(mmap.mmap(fd, size), dtype=torch.uint8)
    finally:
        os.close(fd)


def _opened_device(ticket: Mapping[str, Any], device: torch.device) -> Tensor:
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    if uuid != ticket["uuid"]:
        # Torch would map it as a peer's memory, which SGLang's memory saver turns into a crash of the engine.
        raise SyncError(
            f"the payload lies on GPU {ticket['uuid']}, this engine rank on {uuid}: each rank has its own courier"
        )
    parts = [
        base64.b64decode(part["bytes"]) if isinstance(part, dict) else part for part in json.loads(ticket["shared"])
    ]
    # The device's number is the sender's; both may see the GPUs in another order.
    storage = torch.UntypedStorage._new_shared_cuda(device.index, *parts[1:])
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage, 0, (int(ticket["size"]),), (1,))
