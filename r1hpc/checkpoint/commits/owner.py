"""Who writes to a directory of commits: the attempt that came last, even where an earlier one still lives.

A node that Slurm has given up may go on running, and reach the file system. Whoever finds another's word leaves.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import time
from pathlib import Path

from r1hpc.checkpoint.commits.names import OWNER
from r1hpc.checkpoint.records import read_object
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, remove_stale

logger = logging.getLogger(__name__)


class Owner:
    """One writer; it takes the directory over when it first asks for it."""

    def __init__(self, root: Path) -> None:
        self._path = root / OWNER
        self._token = secrets.token_hex(8)
        self._took_over = False

    def require(self) -> None:
        """Raise CheckpointError when somebody else has taken over since."""
        found = read_object(self._path) if self._took_over else None
        if found is None:
            self._take_over()
        elif found.get("token") != self._token:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.get("since", 0)))
            raise CheckpointError(
                f"{self._path.parent}: process {found.get('pid')} on {found.get('host')} commits here since {since},"
                f" so this one (process {os.getpid()} on {socket.gethostname()}) must not; two runs must not share"
                " ckpt.save, and an attempt that another one has followed must end"
            )

    def _take_over(self) -> None:
        word = {"token": self._token, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self._path)
            publish_json(self._path, word)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise CheckpointError(
                    f"{self._path.parent}: nothing can be committed there ({error.strerror}); ckpt.save must be a"
                    " directory on the shared file system that this user may write to"
                ) from error
            # Not a reason to stop: what is removed next makes room, and the next call tries again.
            logger.warning("%s: cannot be written (%s)", self._path, error.strerror)
            return
        self._took_over = True
