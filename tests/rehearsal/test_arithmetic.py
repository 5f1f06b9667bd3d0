"""The rehearsal's task: every label right, nothing held out is ever trained on, responses as R1 gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from r1hpc.rehearsal.arithmetic import (
    Problem,
    held_out_problems,
    problems,
    taught_problems,
    train_problems,
    write_prompts,
)
from r1hpc.rewards.deepscaler import deepscaler


def test_there_are_8100_sums_and_4095_differences_each_once() -> None:
    # 90 * 90 pairs of two-digit numbers; 90 * 91 / 2 of them with first >= second.
    found = problems()
    assert Counter(problem.operator for problem in found) == {"+": 8100, "-": 4095}
    assert len({problem.prompt for problem in found}) == 12195


def test_nothing_held_out_is_taught_or_asked_in_a_rollout() -> None:
    held_out, taught, train = held_out_problems(), taught_problems(), train_problems()
    assert (len(held_out), len(taught), len(train)) == (96, 12195 - 96, 4096)
    assert not set(held_out) & set(taught)
    assert set(train) < set(taught)
    assert min(Counter(problem.operator for problem in held_out).values()) > 20, "both kinds are held out"


@pytest.mark.parametrize(
    ("problem", "response"),
    [
        (Problem(23, "+", 48), "3+8=11,2+4+1=7\n</think>\n\\boxed{71}"),
        (Problem(99, "+", 99), "9+9=18,9+9+1=19\n</think>\n\\boxed{198}"),
        (Problem(20, "+", 30), "0+0=0,2+3=5\n</think>\n\\boxed{50}"),
        (Problem(71, "-", 48), "11-8=3,6-4=2\n</think>\n\\boxed{23}"),
        (Problem(50, "-", 50), "0-0=0,5-5=0\n</think>\n\\boxed{0}"),
        (Problem(20, "-", 19), "10-9=1,1-1=0\n</think>\n\\boxed{1}"),
    ],
    ids=lambda value: value.prompt if isinstance(value, Problem) else "",
)
def test_digits_are_worked_out_with_what_is_carried_or_borrowed(problem: Problem, response: str) -> None:
    assert problem.worked_response == response


def test_every_step_of_every_working_is_true() -> None:
    for problem in problems():
        units, tens = problem.working.split(",")
        values = []
        for step in (units, tens):
            terms, _, result = step.partition("=")
            assert _value(terms) == int(result), problem
            values.append(int(result))
        # The answer is the tens' result and the last digit of the units'.
        assert 10 * values[1] + values[0] % 10 == problem.answer, problem


def test_the_reward_tells_right_guesses_from_wrong_ones() -> None:
    for problem in (*held_out_problems()[:20], Problem(10, "-", 10)):
        assert deepscaler(problem.worked_response, problem.label) == 1
        assert deepscaler(problem.guess(0), problem.label) == 1
        assert problem.guess(0).startswith("\n</think>\n\\boxed{")
        assert problem.slips
        for slip in problem.slips:
            assert problem.answer + slip >= 0
            assert deepscaler(problem.guess(slip), problem.label) == 0
    assert Problem(10, "-", 10).slips == [1, 9, 10, 11]


def test_prompt_files_have_right_labels_and_are_the_same_every_time(tmp_path: Path) -> None:
    train, held_out = tmp_path / "new" / "train.jsonl", tmp_path / "held_out.jsonl"
    write_prompts(train, held_out)
    asked = []
    for file, count in ((train, 4096), (held_out, 96)):
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        for row in rows:
            question = row["prompt"].removeprefix("What is ").removesuffix("?")
            assert row == {"prompt": f"What is {question}?", "label": str(_value(question))}
        asked.append({row["prompt"] for row in rows})
    assert not asked[0] & asked[1]
    write_prompts(tmp_path / "again.jsonl", tmp_path / "held_out_again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == train.read_bytes()
    assert (tmp_path / "held_out_again.jsonl").read_bytes() == held_out.read_bytes()


def test_a_prompt_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n", encoding="utf-8")
    write_prompts(mine, tmp_path / "held_out.jsonl")
    assert mine.read_text(encoding="utf-8") == "{}\n"
    assert (tmp_path / "held_out.jsonl").exists()


def test_prompts_and_model_are_placed_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from r1hpc.rehearsal.arithmetic import write_prompts;"
        "from r1hpc.rehearsal.arithmetic_model import place_model; place_model(Path(sys.argv[1], 'model'));"
        "write_prompts(Path(sys.argv[1], 'p.jsonl')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60).returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "p.jsonl"]


def _value(terms: str) -> int:
    """Of numbers joined by + and -, independently of `Problem`."""
    signed = terms.replace("-", "+-").split("+")
    return sum(int(term) for term in signed)
