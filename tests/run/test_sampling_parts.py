"""Reward and filter load before anything slow starts; what can never load is a wrong configuration, not a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from r1hpc import exit_codes
from r1hpc.config import Config, load_config
from r1hpc.errors import ConfigError
from r1hpc.rewards.request import RewardError, RewardRequest
from r1hpc.rollout.group import SamplerError
from r1hpc.run import outcome_of
from r1hpc.sampling_parts import started_rewards

PIPELINE = Path(__file__).parents[1] / "pipeline.yaml"


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's modules lie."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config(tmp_path: Path, *overrides: str) -> Config:
    reward = ["rollout.rm_type=null", "rollout.custom_rm_path=own_rewards.grade"]
    return load_config(PIPELINE, overrides=[f"vars.WORK={tmp_path}", *reward, *overrides]).config


def refused(config: Config) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(started_rewards(config))
    assert outcome_of(caught.value).exit_code == exit_codes.INVALID
    return caught.value


def test_a_reward_that_loads_is_started(code: Path) -> None:
    (code / "own_rewards.py").write_text("def grade(response, label, metadata):\n    return len(response)\n")

    async def run() -> float:
        pool = await started_rewards(config(code))
        try:
            return (await pool.score(RewardRequest("four", None, "own_rewards.grade"))).value
        finally:
            await pool.close()

    assert asyncio.run(run()) == 4.0


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def other(): ...\n", "own_rewards has no grade; functions there: other"),
        ("import no_such_package\n", "importing own_rewards failed with ModuleNotFoundError"),
        (
            "import threading, time\ngrade = print\n"
            "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n",
            "started threads",
        ),
    ],
)
def test_a_reward_that_cannot_load_is_a_wrong_configuration(code: Path, source: str, told: str) -> None:
    (code / "own_rewards.py").write_text(source)
    assert told in str(refused(config(code)))


def test_a_filter_that_cannot_load_is_a_wrong_configuration_before_the_engines_start(code: Path) -> None:
    (code / "own_filters.py").write_text("import no_such_package\n")
    problem = refused(config(code, "rollout.dynamic_sampling_filter_path=own_filters.keep"))
    assert "own_filters does not import: ModuleNotFoundError" in str(problem)


def test_what_the_file_system_refuses_may_be_there_the_next_time(code: Path) -> None:
    (code / "own_rewards.py").write_text("open('/no/such/table')\n")
    with pytest.raises(RewardError, match="FileNotFoundError"):
        asyncio.run(started_rewards(config(code)))
    (code / "own_filters_of_a_file.py").write_text("open('/no/such/table')\n")
    with pytest.raises(SamplerError, match="FileNotFoundError"):
        filtered = "rollout.dynamic_sampling_filter_path=own_filters_of_a_file.keep"
        asyncio.run(started_rewards(config(code, filtered)))
