"""The pool: limits, killed workers, the two lanes, groups, custom functions, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from r1hpc.cluster.processes import descendants
from r1hpc.rewards.pool import RewardPool
from r1hpc.rewards.request import RewardError, RewardRequest, Score

HERE = "tests.rewards.custom_rewards"
STUCK = r"</think>\boxed{(x+1)^9*(x+2)^9*(y+x+3)^9(x-y)^9(x+7y)^9(sqrt(x)+y)^9}"


def math(response: str, label: str | None = "5", **metadata: object) -> RewardRequest:
    return RewardRequest(response, label, "deepscaler", metadata)


def right() -> RewardRequest:
    return math(r"</think>\boxed{5}")


def stuck() -> RewardRequest:
    return math(STUCK, "x^9(y+1)")


def custom(name: str, response: str, **metadata: object) -> RewardRequest:
    return RewardRequest(response, None, f"{HERE}.{name}", metadata)


def with_pool(work: Callable[[RewardPool], Awaitable[None]], *kinds: str, timeout_s: float = 1.0) -> None:
    """Run with a pool; afterwards none of its processes may be left."""

    async def run() -> None:
        before = set(descendants(os.getpid()))
        async with RewardPool(kinds or ("deepscaler",), timeout_s=timeout_s, memory_mb=512) as pool:
            await work(pool)
        assert set(descendants(os.getpid())) <= before

    asyncio.run(run())


def test_many_answers_each_get_their_own_reward() -> None:
    async def work(pool: RewardPool) -> None:
        requests = [math(f"</think>\\boxed{{{number % 7}}}") for number in range(300)]
        scores = await asyncio.gather(*map(pool.score, requests))
        assert [score.value for score in scores] == [float(number % 7 == 5) for number in range(300)]
        assert pool.outcomes == {"graded": 300}

    with_pool(work)


def test_stuck_answers_are_killed_and_counted() -> None:
    async def work(pool: RewardPool) -> None:
        begun = time.monotonic()
        for score in await asyncio.gather(*[pool.score(stuck()) for _ in range(6)]):
            assert score == Score(0.0, "timeout", "no answer within 1 s")
        assert time.monotonic() - begun >= 3.0, "two at a time"
        assert (await pool.score(right())).value == 1.0
        assert pool.outcomes == {"graded": 1, "timeout": 6}

    with_pool(work)


def test_ordinary_answers_do_not_wait_for_stuck_ones() -> None:
    async def work(pool: RewardPool) -> None:
        waiting = [asyncio.create_task(pool.score(stuck())) for _ in range(6)]
        good = await asyncio.gather(*[pool.score(right()) for _ in range(100)])
        assert {score.value for score in good} == {1.0}
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()

    with_pool(work, timeout_s=60.0)


def test_custom_function_is_killed_replaced_and_counted_whatever_it_does() -> None:
    async def work(pool: RewardPool) -> None:
        ways = ("hang", "eat", "die", "raise", "exit", "nan", "none", "text", "well")
        scores = await asyncio.gather(*[pool.score(custom("misbehave", way)) for way in ways])
        outcomes = dict(zip(ways, (score.outcome for score in scores), strict=True))
        assert outcomes == {
            "hang": "timeout",
            "eat": "memory",
            "die": "crashed",
            "raise": "error",
            "exit": "error",
            "nan": "error",
            "none": "error",
            "text": "error",
            "well": "graded",
        }
        assert [score.value for score in scores] == [0.0] * 8 + [1.0]
        assert "signal 11" in scores[2].detail
        assert "no such answer" in scores[3].detail
        assert "not finite" in scores[5].detail
        assert (await pool.score(right())).value == 1.0

    with_pool(work, "deepscaler", f"{HERE}.misbehave")


def test_function_that_mostly_raises_ends_the_run_instead_of_training_on_zeros() -> None:
    async def work(pool: RewardPool) -> None:
        with pytest.raises(RewardError, match=r"(?s)failed for 64 of the last 64 responses.*no such answer"):
            for _ in range(64):
                await pool.score(custom("misbehave", "raise"))

    with_pool(work, f"{HERE}.misbehave")


def test_custom_functions_get_label_and_metadata_and_may_be_async() -> None:
    async def work(pool: RewardPool) -> None:
        assert (await pool.score(custom("by_length", "four", bonus=10))).value == 14.0
        assert (await pool.score(custom("later", ""))).value == 2.5

    with_pool(work, f"{HERE}.by_length", f"{HERE}.later")


def test_group_is_rewarded_at_once_by_a_custom_function_and_one_by_one_by_a_built_in() -> None:
    async def work(pool: RewardPool) -> None:
        group = [custom("rank_in_group", letter) for letter in "cab"]
        assert [score.value for score in await pool.score_group(group)] == [2.5, 0.5, 1.5]
        answers = [math(f"</think>\\boxed{{{number}}}") for number in (5, 6, 5)]
        assert [score.value for score in await pool.score_group(answers)] == [1.0, 0.0, 1.0]
        scores = await pool.score_group([custom("by_length", letter) for letter in "ab"])
        assert [score.outcome for score in scores] == ["error", "error"]

    with_pool(work, f"{HERE}.rank_in_group", f"{HERE}.by_length")


def test_metadata_overrides_a_built_in_kind_by_another() -> None:
    async def work(pool: RewardPool) -> None:
        assert (await pool.score(math("5", rm_type="exact"))).value == 1.0
        with pytest.raises(RewardError, match=r"no reward is called 'os\.system'"):
            await pool.score(math("5", rm_type="os.system"))
        with pytest.raises(RewardError, match="no reward is called 5"):
            await pool.score(math("5", rm_type=5))

    with_pool(work)


def test_missing_label_is_an_error_not_a_zero() -> None:
    async def work(pool: RewardPool) -> None:
        with pytest.raises(RewardError, match="compares with a label and a prompt has none"):
            await pool.score(math(r"</think>\boxed{5}", label=None))

    with_pool(work)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no_such_module.reward", "importing no_such_module failed with ModuleNotFoundError"),
        (f"{HERE}.lenght", "has no lenght; functions there: by_length, rank_in_group"),
        (f"{HERE}.NOT_A_FUNCTION", "has a int, not a function"),
    ],
)
def test_custom_function_that_does_not_load_is_refused_at_the_start(path: str, reason: str) -> None:
    async def run() -> None:
        before = set(descendants(os.getpid()))
        with pytest.raises(RewardError, match=reason):
            await RewardPool((path,)).start()
        assert set(descendants(os.getpid())) <= before

    asyncio.run(run())


def test_cancelled_callers_leave_the_pool_working() -> None:
    async def work(pool: RewardPool) -> None:
        tasks = [asyncio.create_task(pool.score(request)) for request in [stuck()] * 3 + [right()] * 20]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        assert (await asyncio.wait_for(pool.score(right()), 5.0)).value == 1.0

    with_pool(work)


def test_closing_gives_an_error_to_those_who_wait() -> None:
    async def run() -> None:
        pool = RewardPool(("deepscaler",), timeout_s=60.0)
        await pool.start()
        waiting = asyncio.create_task(pool.score(stuck()))
        await asyncio.sleep(0.1)
        await pool.close()
        with pytest.raises(RewardError, match="it was closed"):
            await waiting
        with pytest.raises(RewardError, match="it was closed"):
            await pool.score(right())

    asyncio.run(run())


def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from tests.rewards.test_pool import stuck\n"
        "from r1hpc.rewards.pool import RewardPool\n"
        "async def main():\n"
        "    async with RewardPool(('deepscaler',), timeout_s=600) as pool:\n"
        "        waiting = [asyncio.create_task(pool.score(stuck())) for _ in range(2)]\n"
        "        await asyncio.sleep(0.5)\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.gather(*waiting)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        children = descendants(parent.pid)
        assert len(children) >= 3, "the nursery and two workers"
        parent.kill()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in children if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
