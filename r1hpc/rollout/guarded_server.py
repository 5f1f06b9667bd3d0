"""An SGLang server that answers to its key only; run as a module, in place of sglang.launch_server.

SGLang has a key of its own, but takes it as an argument: it prints all of those at its start, hands them to each of its
processes, and answers /metrics and /health_generate without it. Here one process reads it from a file, which is gone
before anything of SGLang is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from r1hpc.rollout.guard import Guard


def write_key(path: Path, key: str) -> None:
    """Make the file that `main` reads, for its owner only."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(key)


def main(key_file: Path, argv: Sequence[str]) -> None:
    """Serve with SGLang's arguments `argv` until the end, as the program sglang.launch_server does."""
    key = key_file.read_text(encoding="ascii")
    key_file.unlink()
    sys.argv[1:] = argv
    import sglang.launch_server as launcher  # type: ignore[import-untyped]
    from sglang.srt.plugins import load_plugins  # type: ignore[import-untyped]

    # Plugins replace parts of the modules that the next line imports.
    load_plugins()
    from sglang.srt.entrypoints.http_server import app  # type: ignore[import-untyped]

    app.add_middleware(Guard, key=key)
    try:
        launcher.run_server(launcher.prepare_server_args(list(argv)))
    finally:
        launcher.kill_process_tree(os.getpid(), include_parent=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
