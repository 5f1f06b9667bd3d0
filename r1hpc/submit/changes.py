"""What a submit changes in a run that has begun: the keys that differ, and those that a commit overrules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.commits.names import COMMITTED, iteration_of
from r1hpc.config import Config, config_hash, load_config
from r1hpc.errors import R1hpcError
from r1hpc.rundir import RunDir
from r1hpc.submit.stages import commits_of

_SHOWN = 30
_SCHEDULE = {"lr": "peak", "min_lr": "minimum", "lr_decay_style": "style", "lr_warmup_iters": "warmup_steps"}
"""Keys of optimizer, as the schedule in a commit's trainer.json calls them."""


def changed(config: Config, directory: RunDir) -> tuple[str, ...]:
    """Notices: every key that is not as at the last submit, old -> new; and what of the schedule has no effect."""
    return (*_differing(config, directory), *_overruled(config))


def _differing(config: Config, directory: RunDir) -> Iterator[str]:
    before = _last(directory)
    if before is None:
        return
    old, new = (dict(_flat(each.model_dump(mode="json"))) for each in (before, config))
    keys = [key for key in {**old, **new} if _shown(old, key) != _shown(new, key)]
    if keys:
        lines = [f"  {key}: {_shown(old, key)} -> {_shown(new, key)}" for key in keys[:_SHOWN]]
        more = [f"  and {len(keys) - _SHOWN} more: compare with {directory.config}"] if len(keys) > _SHOWN else []
        yield "\n".join(["changed since the last submit of this run:", *lines, *more])


def _last(directory: RunDir) -> Config | None:
    """The configuration of the last submit that came to its end; null where there is none that can be read.

    A submit that was killed has left its own in config.yaml, and kept the one that run.json names.
    """
    try:
        digest = json.loads(directory.run.read_text(encoding="utf-8"))["config_hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    for path in (directory.config, directory.root / f"config.{digest}.yaml"):
        try:
            config = load_config(path).config
        except (R1hpcError, OSError):
            continue  # of another version, perhaps: what it said cannot be told
        if config_hash(config) == digest:
            return config
    return None


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by their dotted keys; a list is a leaf."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"


def _overruled(config: Config) -> Iterator[str]:
    """Of the learning rate, where the run goes on from a commit: the optimizer's state comes with its schedule."""
    commit = _goes_on_from(config)
    if commit is None:
        return
    saved, optimizer = _schedule(commit), config.optimizer.model_dump(mode="json")
    told = [
        f"optimizer.{key} stays {saved[name]} as in the commit, not {optimizer[key]}"
        for key, name in _SCHEDULE.items()
        if name in saved and saved[name] != optimizer[key]
    ]
    if told:
        yield (
            f"{'; '.join(told)}: a run that goes on keeps the schedule of {commit} (ckpt.load brings it along, too). "
            "For another one start a new run from the reference: --set run.name=NEW --set ckpt.save=null --set "
            "ckpt.load=null; or, with a new optimizer, from these weights, which the KL is then measured from as well: "
            f"these three, --stage train and --set ckpt.ref_load={commit}"
        )


def _goes_on_from(config: Config) -> Path | None:
    """The newest commit of the run, before its first one that of ckpt.load; judged by its name and COMMITTED.json."""
    for root in (commits_of(config), *([Path(config.ckpt.load)] if config.ckpt.load is not None else [])):
        try:
            found = [(iteration_of(path.name), path) for path in root.iterdir()]
            commits = [(number, path) for number, path in found if number is not None and (path / COMMITTED).is_file()]
        except OSError:
            continue  # not there, or closed: whoever loads from it says what is wrong
        if commits:
            return max(commits)[1]
    return None


def _schedule(commit: Path) -> dict[str, Any]:
    try:
        schedule = json.loads((commit / "trainer.json").read_text(encoding="utf-8"))["schedule"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return schedule if isinstance(schedule, dict) else {}
