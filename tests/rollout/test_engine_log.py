"""What an error quotes of a server's log; the texts are of SGLang 0.5.21, shortened."""

from __future__ import annotations

from pathlib import Path

from r1hpc.rollout.engine_log import telling_lines

DIED = """\
/site/sglang/srt/layers/quantization/awq/awq.py:53: UserWarning: Only CUDA, HIP and XPU support AWQ currently.
  warnings.warn(f"Only CUDA, HIP and XPU support AWQ currently.")
[2026-11-23 05:45:57 TP1] Init parallel begin.
Traceback (most recent call last):
  File "/site/sglang/srt/utils/optional.py", line 3, in <module>
    import vllm
ModuleNotFoundError: No module named 'vllm'
[2026-11-23 05:45:57 TP1] Scheduler hit an exception: Traceback (most recent call last):
  File "/site/sglang/srt/managers/scheduler.py", line 4000, in run_scheduler_process
    scheduler = Scheduler(
  File "/site/sglang/srt/utils/numa_utils.py", line 453, in init_threads_binding
    assert world_size <= n_numa_node, (
AssertionError: the total number of ranks should be smaller than or equal to number of numa node

[2026-11-23 05:45:57] Received sigquit from a child process. It usually means the child failed.
"""


def test_the_last_traceback_is_quoted_with_its_message_and_what_came_after(tmp_path: Path) -> None:
    log = tmp_path / "engine0.log"
    log.write_text(DIED)
    lines = telling_lines(log)
    assert lines[0] == "[2026-11-23 05:45:57 TP1] Scheduler hit an exception: Traceback (most recent call last):"
    assert lines[-2].startswith("AssertionError: the total number of ranks")
    assert lines[-1].endswith("It usually means the child failed.")
    assert len(lines) == 7


def test_without_a_traceback_the_last_lines_are_quoted_without_warnings(tmp_path: Path) -> None:
    log = tmp_path / "engine0.log"
    noise = "a.py:1: UserWarning: no AWQ\n  warnings.warn(x)\n"
    log.write_text("".join(f"{noise}line {number}\n\n" for number in range(20)))
    assert telling_lines(log) == [f"line {number}" for number in range(8, 20)]


def test_of_a_long_traceback_the_first_line_and_the_end_are_quoted(tmp_path: Path) -> None:
    log = tmp_path / "engine0.log"
    frames = "".join(f'  File "deep.py", line {number}, in call\n' for number in range(100))
    log.write_text(f"Traceback (most recent call last):\n{frames}ValueError: too deep\n")
    lines = telling_lines(log)
    assert lines[:2] == ["Traceback (most recent call last):", "  ..."]
    assert lines[2] == '  File "deep.py", line 73, in call'
    assert lines[-1] == "ValueError: too deep"
    assert len(lines) == 30


def test_a_huge_log_is_read_from_its_end_only(tmp_path: Path) -> None:
    log = tmp_path / "engine0.log"
    with open(log, "wb") as stream:
        stream.truncate(8 << 30)  # a hole: reading it all would take this test's memory
        stream.seek(0, 2)
        stream.write(b"\nthe end\n")
    assert telling_lines(log)[-1] == "the end"


def test_a_missing_log_says_nothing(tmp_path: Path) -> None:
    assert telling_lines(tmp_path / "none.log") == []
