"""What is looked at before an engine's process starts, because SGLang would fail minutes later or not at all.

Each check raises EngineStartError.
"""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from r1hpc.errors import R1hpcError
from r1hpc.rollout.engine_environment import is_loopback
from r1hpc.rollout.placement import EngineProcess


class EngineStartError(R1hpcError):
    """An engine that did not come up, or whose port somebody else has; says where its log is and what it says."""


def check_exposure(process: EngineProcess, secret: str | None) -> None:
    """Refuse to open a server to a network without a key: it would do what anybody asks."""
    if secret is None and not is_loopback(process.host):
        raise EngineStartError(
            f"{process.name} would listen on {process.host} with no secret, and serve everybody there; without one an"
            " engine starts on loopback only (127.0.0.0/8)"
        )


def check_checkpoint(process: EngineProcess, directory: str) -> None:
    """Refuse to start without a checkpoint: SGLang would take its path for a name on a hub, and say so in its way."""
    if not (Path(directory) / "config.json").is_file():
        raise EngineStartError(
            f"{process.name}: {directory} is no checkpoint: it has no config.json; engines start from"
            " ckpt.hf_checkpoint, and on CPU from ckpt.bf16_checkpoint, which the cast stage writes"
        )


def check_ports_free(process: EngineProcess) -> None:
    """Refuse to start where somebody listens: SGLang itself would fail minutes later, and less clearly."""
    for port in (process.http_port, process.nccl_port, process.rendezvous_port):
        here = process.meeting_host if port == process.rendezvous_port else process.host
        if process.node_rank > 0 and port == process.rendezvous_port:
            continue
        family = socket.AF_INET6 if ":" in here else socket.AF_INET
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((here, port))
            except OSError as error:
                raise EngineStartError(
                    f"{process.name}: port {port} on {here} cannot be had ({error.strerror}); it belongs to the band of"
                    f" this run (hosts.port_base, hosts.port_span): end what listens there (ss -ltnp 'sport = :{port}')"
                    " or set hosts.port_base"
                ) from error
