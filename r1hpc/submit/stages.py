"""The stages of a run, in their order: what each needs, when its output is complete, and which job carries it out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.config import Config
from r1hpc.rundir import RunDir


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    job: str
    """module:callable of the job, imported only where it is submitted."""
    is_complete: Callable[[Config], bool]
    """Whether its output is already there, judged by what the stage publishes last."""
    output: Callable[[Config], str | None]
    """Where the output goes, for people; null where the configuration asks for none."""
    until: str = "end"
    """Of the train job: how far its attempts go."""

    @property
    def available(self) -> bool:
        """Whether this version has the job's code."""
        return importlib.util.find_spec(self.job.partition(":")[0]) is not None

    def load_job(self) -> Callable[..., Callable[[], Any]]:
        """The job's class, to be called with (run_dir, ...)."""
        module, _, name = self.job.partition(":")
        job: Callable[..., Callable[[], Any]] = getattr(importlib.import_module(module), name)
        return job


def _cast_is_complete(config: Config) -> bool:
    """The index is published last and every file that it names is there."""
    if config.ckpt.bf16_checkpoint is None:
        return True  # convert dequantises on the fly: nothing to cast
    folder = Path(config.ckpt.bf16_checkpoint)
    try:
        files = set(
            json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # not there, or not an index
    return bool(files) and all(os.path.isfile(folder / name) for name in files)


def _convert_is_complete(config: Config) -> bool:
    """The tracker that --ref-load reads is published last."""
    if config.ckpt.ref_load is None:
        return True  # nothing asks for a reference
    folder = Path(config.ckpt.ref_load)
    try:
        tracker = (folder / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
        name = tracker if tracker == "release" else f"iter_{int(tracker):07d}"
    except (OSError, ValueError):
        return False
    return os.path.isfile(folder / name / ".metadata")


def done_iterations(directory: RunDir) -> int | None:
    """Iterations that DONE says are done; None where the run is not complete."""
    return int(_recorded(directory.done).get("iterations", 0)) if directory.done.exists() else None


def _train_is_complete(config: Config) -> bool:
    """The loop has done as many iterations as are asked for now; asked for more, the run goes on."""
    done = done_iterations(_run(config))
    return done is not None and done >= config.rollout.num_rollout


def commits_of(config: Config) -> Path:
    """Where the run commits to."""
    return _run(config).checkpoints if config.ckpt.save is None else Path(config.ckpt.save)


def _run(config: Config) -> RunDir:
    return RunDir(Path(config.run.root) / config.run.name)


def foreign_source(stage: Stage, config: Config) -> str | None:
    """What a complete output says it was made from, where that is not what the configuration would make it from.

    None too where nothing is recorded: others make such checkpoints as well.
    """
    ckpt = config.ckpt
    if stage.name == "cast" and ckpt.bf16_checkpoint is not None:
        recorded = _recorded(Path(ckpt.bf16_checkpoint) / "manifest.json").get("source")
        return _foreign(recorded, ckpt.hf_checkpoint)
    if stage.name == "convert" and ckpt.ref_load is not None:
        recorded = _recorded(Path(ckpt.ref_load) / "release" / "source.json")
        return _foreign(recorded, ckpt.hf_checkpoint, ckpt.bf16_checkpoint)
    return None


def _recorded(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _foreign(recorded: object, *expected: str | None) -> str | None:
    path = recorded.get("path") if isinstance(recorded, dict) else None
    if not isinstance(path, str) or os.path.realpath(path) in [os.path.realpath(each) for each in expected if each]:
        return None
    return path


CAST = Stage("cast", "jobs.cast:CastTask", _cast_is_complete, lambda config: config.ckpt.bf16_checkpoint)
CONVERT = Stage("convert", "jobs.convert:ConvertTask", _convert_is_complete, lambda config: config.ckpt.ref_load)
PREFLIGHT = Stage("preflight", "jobs.train:NodeAgent", lambda config: False, lambda config: None, "bring-up")
CANARY = Stage("canary", "jobs.train:NodeAgent", lambda config: False, lambda config: None, "canary")
TRAIN = Stage("train", "jobs.train:NodeAgent", _train_is_complete, lambda config: str(commits_of(config)))

PIPELINE = (CAST, CONVERT, TRAIN)
"""What `submit` runs when no stage is named."""
BY_NAME = {stage.name: stage for stage in (CAST, CONVERT, PREFLIGHT, CANARY, TRAIN)}
TRIALS = (PREFLIGHT, CANARY)
"""Begin as a train job, and end before it trains."""
