"""Plain copies: read, write, fsync, nothing else. The limit of any program that moves these bytes."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

BLOCK_BYTES = 128 << 10
"""As cp does. Aligned writes of 1 MB and more get large pages of the page cache, which took a virtual machine that
gives free memory back to its host three times as long."""


def copy_files(files: Sequence[Path], target: Path, processes: int, written_bytes: int | None = None) -> float:
    """Seconds in which so many processes read `files` and write them, each with an fsync, to `target`.

    written_bytes: of all files together, when each block is written more than once, as a cast to wider numbers does.
    """
    target.mkdir(parents=True)
    times = written_bytes / sum(file.stat().st_size for file in files) if written_bytes else 1.0
    shares = [files[number::processes] for number in range(processes)]

    def copy_share(number: int) -> None:
        block = memoryview(bytearray(BLOCK_BYTES))
        for file in shares[number]:
            _copy_file(file, target / file.name, block, times)

    return in_processes(copy_share, processes)


def cp_files(files: Sequence[Path], target: Path, processes: int) -> float:
    """Seconds of `cp` and `sync` of the same files, in so many shells."""
    target.mkdir(parents=True)
    shares = [[str(file) for file in files[number::processes]] for number in range(processes)]
    begin = time.perf_counter()
    script = 'target=$1; shift; cp --reflink=never "$@" "$target" && cd "$target" && sync "${@##*/}"'
    shells = [subprocess.Popen(["bash", "-c", script, "cp", str(target), *share]) for share in shares if share]
    failed = [shell.args for shell in shells if shell.wait() != 0]
    seconds = time.perf_counter() - begin
    if failed:
        raise RuntimeError(f"cp failed: {failed}")
    return seconds


def file_system_speed(directory: Path, size_bytes: int, processes: int) -> tuple[float, float]:
    """(bytes written a second, bytes read and written a second) of so many processes on new files in `directory`.

    What is read has been evicted from this host's page cache; a server's cache may still hold it. The files go again.
    """
    files = [directory / f".speed.{os.uname().nodename}.{os.getpid()}.{number}" for number in range(processes)]
    copies = [file.with_name(file.name + ".copy") for file in files]
    blocks = max(1, size_bytes // processes // BLOCK_BYTES)
    total = blocks * BLOCK_BYTES * processes

    def write(number: int) -> None:
        block = secrets.token_bytes(BLOCK_BYTES)  # nothing that a file system could compress
        with open(files[number], "wb", buffering=0) as stream:
            for _ in range(blocks):
                stream.write(block)
            os.fsync(stream.fileno())

    def copy(number: int) -> None:
        _copy_file(files[number], copies[number], memoryview(bytearray(BLOCK_BYTES)), 1.0)

    try:
        write_s = in_processes(write, processes)
        evict(files)
        copy_s = in_processes(copy, processes)
    finally:
        for file in (*files, *copies):
            file.unlink(missing_ok=True)
    return total / write_s, 2 * total / copy_s


def evict(files: Sequence[Path]) -> None:
    """Take files that are on disk out of the page cache."""
    for file in files:
        with open(file, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(files: Sequence[Path]) -> None:
    """Read files once, so that the page cache holds them."""
    block = memoryview(bytearray(BLOCK_BYTES))
    for file in files:
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(block):
                pass


def in_processes(work: Callable[[int], None], processes: int) -> float:
    """Seconds until `work(number)` has ended in each of so many processes. Raises RuntimeError where one failed."""
    context = get_context("fork")
    begin = time.perf_counter()
    started = [context.Process(target=work, args=(number,)) for number in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    seconds = time.perf_counter() - begin
    if any(process.exitcode for process in started):
        raise RuntimeError(f"{sum(process.exitcode != 0 for process in started)} of {processes} processes failed")
    return seconds


def _copy_file(source: Path, target: Path, block: memoryview, times: float) -> None:
    owed = 0.0
    with open(source, "rb", buffering=0) as original, open(target, "wb", buffering=0) as copy:
        while count := original.readinto(block):
            owed += count * times
            while (part := min(count, int(owed))) > 0:
                owed -= copy.write(block[:part])
        os.fsync(copy.fileno())
