"""Casts and conversions of the tests, whole or task by task, and what came of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from r1hpc.checkpoint.cast import plan_cast, run_cast_task
from r1hpc.checkpoint.conversion import Conversion, make_slices, plan_conversion
from r1hpc.checkpoint.convert import run_convert_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.checkpoint.task_outcome import TaskOutcome

INDEX = "model.safetensors.index.json"
Edit = Callable[[dict[str, torch.Tensor]], object]


def quiet(line: str) -> None:
    """Progress is not what these tests are about."""


def cast(source: Path, target: Path, index: int = 0, num_tasks: int = 1, workers: int = 1) -> TaskOutcome:
    """One task of a cast, as an array element plans and runs it."""
    return run_cast_task(plan_cast(source, target), index, num_tasks, workers, quiet)


def conversion(source: Path, root: Path, *, pipeline: int = 2, expert: int = 2, pieces: int = 2) -> Conversion:
    """The plan of a conversion into pipeline x expert slices, the last of one layer."""
    checkpoint = open_checkpoint(source)
    slices = make_slices(checkpoint.shape.num_layers, pipeline, None, 1 if pipeline > 1 else None, expert, "layout")
    return plan_conversion(checkpoint, root, slices, pieces)


def convert(source: Path, root: Path, index: int = 0, num_tasks: int = 1, workers: int = 1) -> TaskOutcome:
    """One task of a conversion."""
    return run_convert_task(conversion(source, root), index, num_tasks, workers, quiet)


def published(outcome: TaskOutcome) -> None:
    """Assert that the task found everything complete at its end."""
    assert outcome.published


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too, by its relative path; there is no empty one, and none of work in
    progress beside it."""
    assert not (directory.parent / f".{directory.name}.cast").exists()
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_dir():
            assert any(path.iterdir()), f"{name} is empty"
        else:
            found[name] = path.read_bytes()
    assert found
    return found


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face directory, read by the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def edit_shard(file: Path, edit: Edit) -> None:
    """Change tensors of a file in place, its index left as it is."""
    with safe_open(file, "pt") as reader:
        tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 (no mapping)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    value = json.loads(file.read_text(encoding="utf-8"))
    edit(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def file_of(directory: Path, tensor: str) -> Path:
    """The file that a tensor is in, by the index."""
    weight_map: dict[str, str] = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return directory / weight_map[tensor]


def revise(directory: Path) -> None:
    """Turn a block-fp8 checkpoint into another of equal headers, written at another time: every scale is halved."""
    for file in directory.glob("*.safetensors"):
        edit_shard(file, lambda tensors: [value.mul_(0.5) for name, value in tensors.items() if "scale_inv" in name])
        os.utime(file, (1_700_000_000, 1_700_000_000))


def flip_bit(file: Path, position: int) -> None:
    """Turn over one bit; size and times stay."""
    status = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
        stream.seek(position)
        stream.write(bytes([byte ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def killed_at_rename(number: int, run: Callable[[], object], *, after: bool) -> bool:
    """Run it in a child that gets SIGKILL, its workers do not, before or after its rename of this number; if it did."""

    def deadly() -> None:
        _die_at_rename(number, after)
        run()

    with forked(deadly) as child:
        code = leaves_with(child)
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _die_at_rename(number: int, after: bool) -> None:
    me, seen = os.getpid(), [0]

    def deadly(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*arguments: Any) -> None:
            mine = os.getpid() == me
            seen[0] += mine
            if mine and seen[0] == number and not after:
                os.kill(me, signal.SIGKILL)
            real(*arguments)
            if mine and seen[0] == number:
                os.kill(me, signal.SIGKILL)

        return rename

    os.replace, os.rename = deadly(os.replace), deadly(os.rename)


def workers_die_at_rename() -> None:
    """SIGKILL for every worker of this process that is about to publish something."""
    me, real = os.getpid(), os.replace

    def replace(*arguments: Any) -> None:
        if os.getpid() != me:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)

    os.replace = replace  # type: ignore[assignment]


def leaves_with(child: int) -> int:
    """How the child ends: exit code, or minus the signal. Reaps it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_once(runs: Sequence[Callable[[], object]]) -> list[int]:
    """How children end that run these, all released at one moment."""
    gate, release = os.pipe()

    def wait_and(run: Callable[[], object]) -> None:
        os.close(release)
        os.read(gate, 1)  # nothing comes: it returns when the last writer is gone
        run()

    with ExitStack() as stack:
        children = [stack.enter_context(forked(partial(wait_and, run))) for run in runs]
        os.close(gate)
        os.close(release)
        return [leaves_with(child) for child in children]


@contextmanager
def forked(run: Callable[[], object]) -> Iterator[int]:
    """A child that runs `run` and leaves with 0, or with 1 if that raises; its pid. Gone when the block ends."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setpgid(0, 0)
            run()
            code = 0
        finally:
            os._exit(code)
    try:
        yield child
    finally:
        end(child)


def end(child: int) -> None:
    """Kill what is left of the child and of its group, and reap it."""
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        return
