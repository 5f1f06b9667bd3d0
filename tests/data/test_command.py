"""python -m r1hpc.data: what a person sees before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from r1hpc.data.__main__ import main
from r1hpc.data.report import histogram, lengths_report, prompt_report, visible
from r1hpc.exit_codes import INVALID, SUCCESS
from r1hpc.types import Prompt

HOME = Path(__file__).resolve().parents[2]
WriteLines = Callable[..., Path]


def _arguments(path: Path | str, tokenizer_directory: Path, *settings: str) -> list[str]:
    given = [f"rollout.prompt_data={path}", f"ckpt.hf_checkpoint={tokenizer_directory}", *settings]
    return [str(HOME / "tests/pipeline.yaml"), *(word for text in given for word in ("--set", text))]


def test_counts_lengths_and_the_first_prompts_are_printed(
    write_lines: WriteLines, tokenizer_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(*({"prompt": "x" * length, "label": str(length)} for length in (1, 3, 20, 11, 200)))
    settings = ["rollout.rollout_max_prompt_len=100", "rollout.rollout_shuffle=false"]
    assert main([*_arguments(path, tokenizer_directory, *settings), "--head", "1"]) == SUCCESS
    # Five tokens more than letters: 6, 8, 25 and 16 tokens; 205 are too many.
    assert capsys.readouterr().out == "\n".join(
        [
            "training, in the order of the file",
            f"{path}: 4 prompts of 5 rows",
            "left out, longer than rollout_max_prompt_len = 100: 1 (the longest has 205 tokens)",
            "tokens: 6 to 25, median 16; 99 % have at most 25; 55 in all",
            "   4 to  7  ####################                      1",
            "   8 to 15  ####################                      1",
            "  16 to 31  ########################################  2",
            "",
            "prompt 0 (line 1): 6 tokens, label 1",
            "  first tokens: 1 261 123 262 259 13",
            "  | <｜begin▁of▁sentence｜><｜User｜>x<｜Assistant｜><think>\\n",  # noqa: RUF001
            "",
            "",
        ]
    )


def test_prompts_are_shown_in_the_order_of_training(
    write_lines: WriteLines, tokenizer_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(*({"prompt": f"{n}", "label": "1"} for n in range(10)))
    assert main(_arguments(path, tokenizer_directory, "rollout.rollout_seed=43")) == SUCCESS
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("training", "prompt "))]
    tail = "6 tokens, label 1"  # the first three of the recorded order of seed 43, epoch 0
    assert shown == [
        "training, shuffled, seed 43",
        *(f"prompt {n} (line {n + 1}): {tail}" for n in (2, 1, 5)),
    ]


def test_a_broken_set_does_not_hide_the_next(
    write_lines: WriteLines, tokenizer_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_lines({"prompt": "1+1?", "label": "2"}, name="good.jsonl")
    bad = write_lines({"prompt": "1+1?"}, name="bad.jsonl")
    evaluation = f"eval.eval_prompt_data={{aime: {good}, gone: {good}x}}"
    assert main(_arguments(bad, tokenizer_directory, evaluation)) == INVALID
    output = capsys.readouterr()
    assert f"evaluation aime\n{good}: 1 prompts of 1 rows\n" in output.out
    assert "line 1 has no key 'label': its keys: 'prompt'" in output.err
    assert f"{good}x: cannot be read: No such file or directory" in output.err


def test_a_missing_tokenizer_is_said(
    write_lines: WriteLines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(write_lines({"prompt": "p", "label": "1"}), tmp_path / "gone")) == INVALID
    assert capsys.readouterr().err.startswith(f"ckpt.hf_checkpoint = {tmp_path / 'gone'}: no such directory")


def test_buckets_double() -> None:
    lengths = numpy.array([1, 2, 3, 4, 7, 8, 40], dtype=numpy.int32)
    assert histogram(lengths) == [(1, 1, 1), (2, 3, 2), (4, 7, 2), (8, 15, 1), (16, 31, 0), (32, 63, 1)]
    bars = [line.count("#") for line in lengths_report(lengths)]
    assert bars == [0, 20, 40, 40, 20, 0, 20]


def test_what_would_move_the_cursor_is_escaped() -> None:
    assert visible("a\tb\x1b[2J\u202e\n") == "a\\tb\\x1b[2J\\u202e\\n"
    prompt = Prompt(3, 0, numpy.arange(4, dtype=numpy.int32), None, {"rm_type": "exact"})
    assert list(prompt_report(prompt, "line 4", "first\nsecond")) == [
        "prompt 3 (line 4): 4 tokens, no label, rm_type exact",
        "  first tokens: 0 1 2 3",
        "  | first\\n",
        "  | second",
    ]


def test_of_a_long_prompt_begin_and_end_are_shown() -> None:
    prompt = Prompt(0, 0, numpy.arange(9, dtype=numpy.int32))
    shown = list(prompt_report(prompt, "line 1", "a" * 1500 + "b" * 1600))[2:]
    assert shown == ["  | " + "a" * 1000, "  | ... 1,100 characters more ...", "  | " + "b" * 1000]
