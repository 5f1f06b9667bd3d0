"""Megatron's process groups, destroyed while the trainer sleeps: NCCL keeps buffers on the GPU for each that was used.

The default group stays. It carries what the ranks tell each other about themselves, over gloo, and no tensors of a GPU.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import CellType, FrameType, FunctionType, MethodType
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe import fused_a2a
from torch import nn
from torch.distributed import ProcessGroup, distributed_c10d

from r1hpc.checkpoint.collective import everyones
from r1hpc.errors import R1hpcError

_OPENED = ("megatron", "r1hpc")
"""Packages whose objects are looked into."""
_NAMED = 5
"""Holders of a group in an error."""


class ProcessGroupsError(R1hpcError):
    """Process groups cannot be destroyed or made again."""


@dataclass(frozen=True)
class GroupSpec:
    """What it takes to make a group again."""

    number: int
    """In the order in which groups were first made; the same on every rank."""
    ranks: tuple[int, ...]
    description: str
    backend: str
    timeout: timedelta

    @classmethod
    def of(cls, group: ProcessGroup) -> GroupSpec:
        """Of a group of this rank that torch has named, by counting."""
        return cls(
            number=int(group.group_name),
            ranks=tuple(dist.get_process_group_ranks(group)),
            description=group.group_desc,
            backend=dist.get_backend(group),
            timeout=timeout_of(group),
        )

    def make(self) -> ProcessGroup | None:
        """A new group; null on ranks that are not in it. Every rank makes all groups, in one order: torch counts them.

        It is local with NCCL, whose communicators come with the first use, and waits for the others with gloo.
        """
        made = dist.new_group(list(self.ranks), timeout=self.timeout, backend=self.backend, group_desc=self.description)
        return made if dist.get_rank() in self.ranks else None


class AbsentGroup:
    """Stands where a group was destroyed. It knows sizes, which are asked for at any time, and does nothing else."""

    def __init__(self, spec: GroupSpec) -> None:
        self._spec = spec

    def rank(self) -> int:
        """This process in the group."""
        return self._spec.ranks.index(dist.get_rank())

    def size(self) -> int:
        """Ranks of it."""
        return len(self._spec.ranks)

    def __repr__(self) -> str:
        # torch says this of a group that it does not know.
        return f"{self._spec.description}, destroyed while the trainer sleeps,"


class ProcessGroups:
    """Every method is collective."""

    def __init__(self, *holders: object) -> None:
        """holders: all that refers to groups, at any depth; parallel_state is looked into besides."""
        self._holders = (vars(parallel_state), *holders)
        self._groups = {int(group.group_name): group for group in _megatrons()}
        mine = [GroupSpec.of(group) for group in self._groups.values()]
        specs = {spec.number: spec for of_rank in everyones(mine) for spec in of_rank}
        self._specs = [specs[number] for number in sorted(specs)]
        self._places: list[_Place] | None = None
        self._broken: str | None = None
        """Why groups could not be made again: ranks may count them differently since, and would wait for each other."""

    @property
    def dropped(self) -> bool:
        """The groups do not exist."""
        return self._places is not None

    def drop(self) -> None:
        """Destroy the groups, and with them all memory that they have. No graph of a pass is left: it has groups, too.

        Raises ProcessGroupsError on every rank where something would go on using one, with its name.
        """
        assert self._places is None, "the groups are dropped already"
        self._check_not_broken()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        # Nobody closes a connection before all are done with it.
        names = {
            name for of_rank in everyones([group.group_name for group in self._groups.values()]) for name in of_rank
        }
        absent = {spec.number: AbsentGroup(spec) for spec in self._specs if spec.number in self._groups}
        self._places = self._emptied(absent)
        watched = {number: weakref.ref(group) for number, group in self._groups.items()}
        # One order on all ranks: to destroy a communicator waits for those who share it.
        for number in sorted(self._groups, reverse=True):
            destroy(self._groups.pop(number))
        forget_keys(names)
        left = _left(watched)
        _raise_together(f"destroyed process groups are still held by {'; '.join(left)}" if left else None)

    def restore(self) -> None:
        """Make the groups again, and give them to all who had them."""
        assert self._places is not None, "the groups are there"
        self._check_not_broken()
        problem: str | None = None
        try:
            made = {spec.number: group for spec in self._specs if (group := spec.make()) is not None}
        except Exception as error:  # whatever it is, the others wait for this rank
            problem = f"process groups cannot be made again: {type(error).__name__}: {error}"
        try:
            _raise_together(problem)
        except ProcessGroupsError as error:
            self._broken = str(error)
            raise
        for place in self._places:
            place.put(made[place.number])
        self._groups, self._places = made, None

    def _check_not_broken(self) -> None:
        if self._broken is not None:
            raise ProcessGroupsError(self._broken)

    def _emptied(self, absent: Mapping[int, AbsentGroup]) -> list[_Place]:
        """The places of all groups, each of which is given one that is absent."""
        numbers = {id(group): number for number, group in self._groups.items()}
        places = []
        for holder, key, value in list(_references((*self._holders, *_deepep_buffer()))):
            if (number := numbers.get(id(value))) is not None:
                places.append(_Place(holder, key, number))
                places[-1].put(absent[number])
        return places


def _raise_together(problem: str | None) -> None:
    """Raise on every rank what any of them has to say."""
    said = [f"rank {rank}: {text}" for rank, text in enumerate(everyones(problem)) if text]
    if said:
        raise ProcessGroupsError("\n".join(said))


def timeout_of(group: ProcessGroup | None = None) -> timedelta:
    """Of its collectives; null: of the default group's."""
    group = group or dist.group.WORLD
    assert group is not None
    backend: Any = group._get_backend(group._device_types[0])
    # TORCH_DISTRIBUTED_DEBUG=DETAIL wraps it.
    timeout: timedelta = getattr(backend, "wrapped_pg", backend).options._timeout
    return timeout


def destroy(group: ProcessGroup) -> None:
    """Destroy a group of this rank, of which torch would keep an empty list."""
    tag = distributed_c10d._world.pg_to_tag.get(group)
    dist.destroy_process_group(group)
    if tag and not distributed_c10d._world.tags_to_pg.get(tag):
        distributed_c10d._world.tags_to_pg.pop(tag, None)


def forget_keys(names: Iterable[str]) -> None:
    """Take out of the store what groups of these names had written there; on rank 0, for all."""
    if dist.get_rank():
        return
    store = distributed_c10d._get_default_store()
    gone = set(names)
    try:
        keys = store.list_keys()
    except (AttributeError, RuntimeError, NotImplementedError):
        return  # a file, or a torch that cannot list them
    for key in keys:
        if key.split("/", 1)[0] in gone:
            store.delete_key(key)


@dataclass(frozen=True)
class _Place:
    """Where a group is held."""

    holder: Any
    key: Any
    number: int

    def put(self, group: ProcessGroup | AbsentGroup) -> None:
        _put(self.holder, self.key, group)


def _put(holder: Any, key: Any, value: object) -> None:
    if isinstance(holder, CellType):
        holder.cell_contents = value
    else:
        holder[key] = value


def _megatrons() -> list[ProcessGroup]:
    """All that Megatron has made and this rank is in; null in its list stands for the default group."""
    made = parallel_state._global_process_group_list or []
    return [group for group in made if group is not None]


def _references(roots: Sequence[object]) -> Iterator[tuple[Any, Any, object]]:
    """All that these objects refer to, at any depth, from where another thing can be put: holder, key, value.

    What a tuple holds is looked into, and is not said itself: `drop` says who holds a group that is left.
    """
    seen: dict[int, Any] = {}  # all that was seen stays: what came after it might have its id
    stack: list[Any] = [list(roots)]
    while stack:
        holder = stack.pop()
        if id(holder) in seen:
            continue
        seen[id(holder)] = holder
        for key, value in _items(holder):
            if isinstance(holder, dict | list | CellType):
                yield holder, key, value
            if (inside := _opened(value)) is not None:
                stack.append(inside)


def _items(holder: Any) -> Sequence[tuple[Any, Any]]:
    if isinstance(holder, dict):
        return list(holder.items())
    if isinstance(holder, CellType):
        try:
            return [(None, holder.cell_contents)]
        except ValueError:  # empty
            return []
    return list(enumerate(holder))


def _opened(value: object) -> object | None:
    """The container that has what an object refers to; null where there is nothing to look for."""
    if isinstance(value, dict | list | tuple | set | frozenset | CellType):
        return value
    if isinstance(value, FunctionType):
        return value.__closure__
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return None
    if isinstance(value, nn.Module | torch.Tensor) or type(value).__module__.split(".")[0] in _OPENED:
        return getattr(value, "__dict__", None)
    return None


def _deepep_buffer() -> list[dict[str, Any]]:
    """The attributes of DeepEP's buffer, where there is one: it knows its group by name alone, and stays.

    To end it would end NVSHMEM in this process, which is not made to begin thousands of times.
    """
    buffer = fused_a2a._buffer
    return [vars(buffer)] if hasattr(buffer, "__dict__") else []


def _left(watched: Mapping[int, weakref.ref[ProcessGroup]]) -> list[str]:
    """Who holds one of these still."""
    if any(group() is not None for group in watched.values()):
        gc.collect()
    return list(dict.fromkeys(who for reference in watched.values() for who in _who_holds(reference)))


def _who_holds(reference: weakref.ref[ProcessGroup]) -> list[str]:
    """Attributes, as `module.Class.name`; where there is none, what it is."""
    group = reference()
    if group is None:
        return []
    found = []
    for owner in gc.get_objects():
        for name, value in _attributes(owner).items():
            if value is group:
                found.append(f"{type(owner).__module__}.{type(owner).__qualname__}.{name}")
    others = [
        f"a {type(holder).__name__}" for holder in gc.get_referrers(group) if not isinstance(holder, FrameType | dict)
    ]
    who = found or others or ["something that no attribute leads to"]
    return [f"{each} ({group.group_desc})" for each in who[:_NAMED]]


def _attributes(owner: object) -> Mapping[str, object]:
    if isinstance(owner, type):
        return {}
    try:
        attributes = object.__getattribute__(owner, "__dict__")
    except (AttributeError, TypeError):
        return {}
    return dict(attributes) if isinstance(attributes, dict) else {}
