"""The pool against what kills its processes, and against functions that start processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from r1hpc.cluster.processes import descendants
from r1hpc.rewards.pool import RewardPool
from r1hpc.rewards.request import RewardError
from r1hpc.rewards.workers import MAX_RESTARTS
from tests.rewards.test_pool import HERE, custom, math, right, stuck, with_pool


def nursery() -> psutil.Process:
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    (found,) = [child for child in children if "r1hpc.rewards.nursery" in child.cmdline()]
    return found


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.02)


def test_every_grade_returns_though_the_nursery_is_killed_in_the_middle() -> None:
    async def work(pool: RewardPool) -> None:
        requests = [math(f"</think>\\boxed{{{number % 7}}}") for number in range(2_000)]
        slow = [asyncio.create_task(pool.score(custom("later", ""))) for _ in range(20)]
        hanging = [asyncio.create_task(pool.score(stuck())) for _ in range(3)]
        grades = [asyncio.create_task(pool.score(request)) for request in requests]
        for _ in range(2):
            await asyncio.sleep(0.3)
            restarts = pool.num_restarts
            nursery().kill()
            while pool.num_restarts == restarts:
                await asyncio.sleep(0.01)
        scores = await asyncio.wait_for(asyncio.gather(*grades), 60.0)
        assert [score.value for score in scores] == [float(number % 7 == 5) for number in range(2_000)]
        assert [score.value for score in await asyncio.gather(*slow)] == [2.5] * 20
        assert {score.outcome for score in await asyncio.gather(*hanging)} == {"timeout"}
        assert pool.num_restarts == 2
        assert pool.outcomes == {"graded": 2_020, "timeout": 3}

    with_pool(work, "deepscaler", f"{HERE}.later")


def test_workers_killed_from_outside_cost_no_grade() -> None:
    async def work(pool: RewardPool) -> None:
        grades = [asyncio.create_task(pool.score(math(f"</think>\\boxed{{{n % 7}}}"))) for n in range(4_000)]
        num_killed = 0
        while not all(grade.done() for grade in grades):
            await asyncio.sleep(0.15)
            for worker in nursery().children():
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
                    num_killed += 1
        assert [(await grade).value for grade in grades] == [float(n % 7 == 5) for n in range(4_000)]
        assert pool.outcomes == {"graded": 4_000}
        assert num_killed > 1  # the faster the machine, the fewer

    with_pool(work)


def test_answer_that_kills_the_nursery_each_time_is_an_error_after_the_restarts() -> None:
    async def work(pool: RewardPool) -> None:
        waiting = [asyncio.create_task(pool.score(custom("kill_parent", "kill")))]
        waiting += [asyncio.create_task(pool.score(stuck()))]
        for task in waiting:
            with pytest.raises(RewardError, match=rf"killed {MAX_RESTARTS + 1} times within 10 minutes"):
                await asyncio.wait_for(task, 60.0)
        assert pool.num_restarts == MAX_RESTARTS
        with pytest.raises(RewardError, match="a reward function that kills its parent"):
            await pool.score(right())

    with_pool(work, "deepscaler", f"{HERE}.kill_parent", timeout_s=60.0)


def test_closing_while_a_nursery_is_started_again_leaves_nothing() -> None:
    async def work(pool: RewardPool) -> None:
        waiting = asyncio.create_task(pool.score(stuck()))
        await asyncio.sleep(0.1)
        nursery().kill()
        await asyncio.sleep(0.1)
        await pool.close()
        with pytest.raises(RewardError, match="it was closed"):
            await waiting

    with_pool(work, timeout_s=60.0)


def test_cancelled_start_and_a_pool_that_was_never_started_leave_nothing() -> None:
    async def run() -> None:
        before = set(descendants(os.getpid()))
        pool = RewardPool(("deepscaler",))
        await pool.close()
        starting = asyncio.create_task(RewardPool(("deepscaler",)).start())
        await asyncio.sleep(0.1)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert set(descendants(os.getpid())) <= before

    asyncio.run(run())


def test_signals_to_every_process_of_a_job_change_no_grade() -> None:
    async def work(pool: RewardPool) -> None:
        grades = [asyncio.create_task(pool.score(custom("later", ""))) for _ in range(10)]
        await asyncio.sleep(0.1)
        for process in (nursery(), *nursery().children()):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                process.send_signal(number)
        assert [score.value for score in await asyncio.gather(*grades)] == [2.5] * 10
        assert pool.num_restarts == 0

    with_pool(work, f"{HERE}.later")


def test_processes_of_a_function_end_with_its_worker(tmp_path: Path) -> None:
    files = [tmp_path / "waits", tmp_path / "leaves it"]

    async def work(pool: RewardPool) -> None:
        waiting = custom("fork", "wait", pid_file=str(files[0]))
        assert (await pool.score(waiting)).outcome == "timeout"
        wait_until_gone(int(files[0].read_text()))
        assert (await pool.score(custom("fork", "go", pid_file=str(files[1])))).value == 1.0

    with_pool(work, f"{HERE}.fork")
    wait_until_gone(int(files[1].read_text()))


def test_function_that_returns_in_its_fork_too_answers_once() -> None:
    async def work(pool: RewardPool) -> None:
        scores = [await pool.score(custom("fork", "return twice")) for _ in range(10)]
        assert [(score.value, score.outcome) for score in scores] == [(0.0, "graded")] * 10, "what the parent returns"

    with_pool(work, f"{HERE}.fork")


def test_unusual_numbers_are_taken_and_unusual_exceptions_are_errors() -> None:
    async def work(pool: RewardPool) -> None:
        ways = {"numpy": 0.5, "bool": 1.0, "numpy bool": 1.0}
        assert {way: (await pool.score(custom("odd_number", way))).value for way in ways} == ways
        for way, name in {"cancelled": "CancelledError", "interrupted": "KeyboardInterrupt"}.items():
            score = await pool.score(custom("odd_number", way))
            assert score.outcome == "error"
            assert name in score.detail
        group = [custom("slow_group", letter) for letter in "abc"]
        assert [score.value for score in await pool.score_group(group)] == [0.0, 1.0, 2.0]

    with_pool(work, f"{HERE}.odd_number", f"{HERE}.slow_group")


def test_function_that_starts_to_fail_late_is_noticed() -> None:
    async def work(pool: RewardPool) -> None:
        for _ in range(300):
            await pool.score(custom("misbehave", "well"))
        with pytest.raises(RewardError, match="failed for 129 of the last 256 responses"):
            for _ in range(256):
                await pool.score(custom("misbehave", "raise"))

    with_pool(work, f"{HERE}.misbehave")


def test_metadata_that_is_no_json_is_an_error_of_that_prompt_only() -> None:
    async def work(pool: RewardPool) -> None:
        with pytest.raises(RewardError, match=r"metadata of a prompt cannot be passed to .*by_length as JSON"):
            await pool.score(custom("by_length", "four", bonus={1, 2}))
        assert (await pool.score(custom("by_length", "four"))).value == 4.0

    with_pool(work, f"{HERE}.by_length")


def test_processes_of_a_function_end_with_a_killed_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import asyncio\n"
        "from tests.rewards.test_pool import HERE, custom\n"
        "from r1hpc.rewards.pool import RewardPool\n"
        "async def main():\n"
        "    async with RewardPool((f'{HERE}.fork',), timeout_s=600) as pool:\n"
        f"        await pool.score(custom('fork', 'wait', pid_file={str(pid_file)!r}))\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        deadline = time.monotonic() + 60
        while not (pid_file.exists() and pid_file.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        parent.kill()
    wait_until_gone(int(pid_file.read_text()))
