"""Free ports for a loopback cluster, safe against another cluster that starts at the same moment."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from r1hpc.errors import RehearsalError

BAND = range(21000, 31000)
"""Below Linux's ephemeral ports (32768 and up), above the defaults of Ray and Slurm."""

BLOCK = 256
"""Ports set aside for one cluster: more than the largest one needs."""


@contextmanager
def free_port_block(size: int) -> Iterator[int]:
    """Yield the first of `size` consecutive free ports, kept from other clusters while the context lasts.

    The daemons must be listening before it ends. The claim is an abstract unix socket: one for all users of the
    host, and dropped by the kernel with the process, however that ends.
    """
    assert size <= BLOCK, f"{size} ports asked for, a block has {BLOCK}"
    for base in range(BAND.start, BAND.stop - BLOCK + 1, BLOCK):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(f"\0r1hpc-rehearsal-ports-{base}")
            except OSError:
                continue
            if all(_is_free(port) for port in range(base, base + size)):
                yield base
                return
    raise RehearsalError(
        f"no {size} consecutive free ports in {BAND.start}-{BAND.stop - 1}: "
        "too many private clusters on this host? take one down: python -m r1hpc.rehearsal down --dir DIR"
    )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # slurmd and slurmctld bind with this option too: a connection in TIME_WAIT does not hinder them.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
