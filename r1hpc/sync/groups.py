"""The process groups that weights travel in: of all ranks, and of the couriers. Training's may be destroyed then."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from r1hpc.checkpoint.collective import everyones
from r1hpc.train.process_groups import destroy, forget_keys, timeout_of


class SyncGroups:
    """Made when they are first asked for. Every method is collective."""

    def __init__(self, device: torch.device) -> None:
        """device: of what is sent in them."""
        self._device = device
        self._of: dict[tuple[int, ...], ProcessGroup | None] = {}
        """By ranks; null on a rank that is in none of these."""

    def world(self) -> ProcessGroup:
        """The group of all ranks."""
        everyone = tuple(range(dist.get_world_size()))
        is_new = everyone not in self._of
        group = self.of(everyone)
        assert group is not None
        if is_new and len(everyone) > 1:
            # A communicator is made at its first use, by all: not by those alone whom a first exchange concerns.
            dist.all_reduce(torch.zeros(1, device=self._device), group=group)
        return group

    def of(self, ranks: tuple[int, ...]) -> ProcessGroup | None:
        """The group of these ranks; null on others."""
        members = tuple(sorted(ranks))
        if members not in self._of:
            # Noted before it is there: `destroy` is collective, also for a rank on which this fails.
            self._of[members] = None
            made = dist.new_group(list(members), timeout=timeout_of(), backend=_backend(self._device))
            self._of[members] = made if dist.get_rank() in members else None
        return self._of[members]

    def destroy(self) -> None:
        """Give back all that they have; what asks for one again is given a new one."""
        if not self._of:
            return
        mine = [group for group in self._of.values() if group is not None]
        # Nobody closes a connection before all are done with it.
        names = {name for of_rank in everyones([group.group_name for group in mine]) for name in of_rank}
        self._of.clear()
        while mine:
            destroy(mine.pop())
        forget_keys(names)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"
