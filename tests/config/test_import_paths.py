"""Import paths of the configuration, looked up without importing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from r1hpc.config import load_config
from r1hpc.config.import_paths import check_import_paths
from r1hpc.errors import ConfigError

if TYPE_CHECKING:
    from tests.config.conftest import WriteConfig

MODULE = """\
raise RuntimeError("imported")
from math import exp as weight
import os.path
LIMIT: int = 3
first, (second, *rest) = 1, (2, 3)
if LIMIT:
    def grade(response, label, metadata):
        inner = 1
else:
    async def grade_later(response, label, metadata): ...
try:
    import none_such as other
except ImportError:
    other = None
class Judge:
    def method(self): ...
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of modules that a user has on PYTHONPATH."""
    directory = tmp_path / "code"
    (directory / "mine").mkdir(parents=True)
    (directory / "mine/__init__.py").write_text('raise RuntimeError("imported")\n')
    (directory / "mine/rewards.py").write_text(MODULE)
    (directory / "mine/open_names.py").write_text("from mine.rewards import *\n")
    (directory / "mine/own_lookup.py").write_text("def __getattr__(name): ...\n")
    (directory / "mine/broken.py").write_text("x = 1\ndef grade(:\n")
    monkeypatch.syspath_prepend(str(directory))
    return directory


def check(write_config: WriteConfig, path: str, *overrides: str) -> tuple[str, ...]:
    reward = ["rollout.rm_type=null", f"rollout.custom_rm_path={path}"]
    return check_import_paths(load_config(write_config(), overrides=[*reward, *overrides], environ={}))


def refusal(write_config: WriteConfig, path: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(write_config, path)
    [problem] = caught.value.problems
    return problem


@pytest.mark.parametrize("name", ["grade", "grade_later", "weight", "os", "LIMIT", "second", "rest", "other", "Judge"])
def test_every_name_that_a_module_binds_is_found_and_nothing_is_imported(
    write_config: WriteConfig, place: Path, name: str
) -> None:
    assert check(write_config, f"mine.rewards.{name}") == ()
    assert not {"mine", "mine.rewards"} & sys.modules.keys()


@pytest.mark.parametrize("module", ["open_names", "own_lookup"])
def test_a_module_whose_names_only_running_it_tells_may_have_any(
    write_config: WriteConfig, place: Path, module: str
) -> None:
    assert check(write_config, f"mine.{module}.anything") == ()


def test_a_module_that_is_no_source_may_have_any(write_config: WriteConfig) -> None:
    assert check(write_config, "math.anything") == ()


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("mine.rewards.grad", "mine.rewards has no grad; did you mean grade?"),
        ("mine.rewards.inner", "mine.rewards has no inner; "),
        ("mine.rewards.method", "mine.rewards has no method; "),
        ("mine.reward.grade", "no module reward in {place}/mine"),
        ("mine.rewards.grade.deeper", "mine.rewards is a module, not a package: there is no mine.rewards.grade"),
        ("nowhere.grade", "no module nowhere in {place}, "),
        ("mine.broken.grade", "{place}/mine/broken.py:2 is no Python: "),
    ],
)
def test_what_is_not_there_is_told_with_what_was_searched(
    write_config: WriteConfig, place: Path, path: str, told: str
) -> None:
    problem = refusal(write_config, path)
    assert problem.startswith(f"--set rollout.custom_rm_path={path}: {told.format(place=place)}")


def test_the_filter_is_looked_up_where_it_is_written(write_config: WriteConfig) -> None:
    path = write_config("  dynamic_sampling_filter_path: r1hpc.rollout.filters.nonzero_std\n", append=True)
    with pytest.raises(ConfigError) as caught:
        check_import_paths(load_config(path, environ={}))
    [problem] = caught.value.problems
    key = "rollout.dynamic_sampling_filter_path = r1hpc.rollout.filters.nonzero_std"
    assert problem.startswith(f"config.yaml:19: {key}: r1hpc.rollout.filters has no nonzero_std; ")


@pytest.mark.parametrize(
    ("override", "whose"),
    [
        ("slurm.container=[--container-image=r1.sqsh]", "slurm.container"),
        ("slurm.python=/shared/venv/bin/python", "slurm.python = /shared/venv/bin/python"),
        ("slurm.setup=[export PYTHONPATH=/shared/code]", "slurm.setup"),
    ],
)
def test_a_module_that_only_the_jobs_python_may_have_is_a_notice(
    write_config: WriteConfig, override: str, whose: str
) -> None:
    [notice] = check(write_config, "nowhere.grade", override)
    assert notice.endswith(f"; not checked further, for {whose} may bring it")
