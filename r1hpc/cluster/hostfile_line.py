"""One line of a hostfile, in any dialect that people bring: Open MPI, MPICH, Intel MPI, DeepSpeed, PBS, slime."""

from __future__ import annotations

import difflib
import ipaddress
import re
from dataclasses import dataclass

from r1hpc.cluster.nodeset import expand

_SLOT_KEYS = ("slots", "slot", "count", "cpu", "cpus")
_MAX_KEYS = ("max_slots", "max-slots", "slots_max", "slots-max", "count_max", "cpu_max", "cpus_max")
_USER_KEYS = ("user", "username", "user_name")
_IGNORED_KEYS = ("binding", "ifname", "port", "boards", "sockets", "rack")
_KEYS = _SLOT_KEYS + _MAX_KEYS + _USER_KEYS + _IGNORED_KEYS


@dataclass(frozen=True)
class HostLine:
    """What one line says."""

    names: tuple[str, ...]
    """One host, or the hosts of a range."""
    slots: int | None = None
    max_slots: int | None = None
    user: str | None = None
    excluded: bool = False
    """Written as ^host: never to be used."""
    openmpi: bool = True
    """Open MPI reads this line as it stands."""
    notices: tuple[str, ...] = ()


def parse_line(text: str) -> HostLine | None:
    """What a line says; None for a blank line or a comment. Raises ValueError naming the faulty part."""
    body = re.sub(r"\s*=\s*", "=", text.partition("#")[0]).strip()
    if not body:
        return None
    spec, *words = body.split()
    excluded = spec.startswith("^")
    user, spec = _split_user(spec.removeprefix("^"))
    target, slots = _split_slots(spec)
    openmpi = slots is None and "[" not in target
    max_slots: int | None = None
    notices = []
    for word in words:
        key, value = _split_word(word)
        if key in _SLOT_KEYS:
            if slots is not None:
                raise ValueError(f'"{word}" gives the slots of "{target}" a second time')
            slots = _positive(word, value)
            if key == "slot":
                openmpi = False
                notices.append(f'"{word}" is read as slots={value}; Open MPI and DeepSpeed refuse "slot="')
        elif key in _MAX_KEYS:
            max_slots = _positive(word, value)
        elif key in _USER_KEYS:
            user = value
        else:
            openmpi = False
            notices.append(f'"{word}" is ignored')
    if slots is not None and max_slots is not None and slots > max_slots:
        raise ValueError(f"slots={slots} is more than max_slots={max_slots}")
    return HostLine(_names(target), slots, max_slots, user, excluded, openmpi, tuple(notices))


def _split_user(spec: str) -> tuple[str | None, str]:
    user, at, host = spec.rpartition("@")
    if at and not user:
        raise ValueError(f'"{spec}" is a node group: write its nodes')
    if at and not host:
        raise ValueError(f'"{spec}" has a user and no host')
    return (user or None), host


def _split_slots(spec: str) -> tuple[str, int | None]:
    """(host, slots) of `host`, `host:8`, `2001:db8::1`, `[2001:db8::1]` and `[2001:db8::1]:8`."""
    bracketed = re.fullmatch(r"\[([0-9A-Fa-f:.%\w]*:[^\]]*)\](?::(.*))?", spec)
    if bracketed:
        count = bracketed[2]
        return _address(bracketed[1]), None if count is None else _positive(spec, count)
    if spec.count(":") > 1:
        return _address(spec), None
    host, colon, count = spec.partition(":")
    return host, _positive(spec, count) if colon else None


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError:
        raise ValueError(f'"{text}" is no IPv6 address') from None


def _split_word(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    key = key.lower()
    if not equals:
        fix = f"write slots={word}" if word.isdigit() else "after the host only key=value may follow"
        raise ValueError(f'"{word}" is not understood: {fix}')
    if key not in _KEYS:
        near = difflib.get_close_matches(key, ("slots", "max_slots", "user"), n=1)
        meant = f'; did you mean "{near[0]}"?' if near else "; known are slots and max_slots"
        raise ValueError(f'"{word}" has an unknown key{meant}')
    return key, value


def _positive(part: str, value: str) -> int:
    # isdigit would also accept "²"
    if not re.fullmatch(r"[0-9]+", value) or int(value) == 0:
        raise ValueError(f'"{part}" must give a number of slots of at least 1')
    return int(value)


def _names(target: str) -> tuple[str, ...]:
    if not target:
        raise ValueError("the host is missing")
    if ":" in target:
        return (target,)
    if re.search(r"[\[\]]", target):
        return tuple(_plain(name) for name in expand(target))
    return (_plain(target),)


def _plain(target: str) -> str:
    """A single host name or IPv4 address, as it is."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", target):
        raise ValueError(f'"{target}" is no host name or address')
    if re.fullmatch(r"[0-9.]+", target):
        try:
            ipaddress.IPv4Address(target)
        except ValueError:
            raise ValueError(f'"{target}" is no IPv4 address') from None
    return target
