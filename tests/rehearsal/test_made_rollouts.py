"""Rollouts that nobody sampled: what a drill trains on without engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from r1hpc.rehearsal.arithmetic import train_problems
from r1hpc.rehearsal.arithmetic_model import ARITHMETIC_R1
from r1hpc.rehearsal.made_rollouts import main
from r1hpc.rollout.rollout_file import load_rollout, rollout_path

GROUPS, SAMPLES = 3, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    assert main([str(out), "--rollouts", "2", "--groups", str(GROUPS), "--samples", str(SAMPLES)]) == 0
    return out


def test_no_problem_is_asked_twice_and_answers_are_rewarded_for_what_they_say(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ARITHMETIC_R1)
    for rollout_id in (0, 1):
        rollout = load_rollout(rollout_path(made, rollout_id)).rollout
        assert [group.prompt.index for group in rollout.groups] == [rollout_id * GROUPS + i for i in range(GROUPS)]
        assert [sample.index for sample in rollout.samples] == list(range(GROUPS * SAMPLES))
        for group in rollout.groups:
            problem = train_problems()[group.prompt.index]
            assert [sample.reward for sample in group.samples] == [1.0, 0.0, 0.0, 1.0]
            for sample in group.samples:
                text = str(tokenizer.decode(sample.tokens[-sample.response_len : -1]))
                said = text.partition("\\boxed{")[2].rstrip("}")
                assert (said == str(problem.answer)) == (sample.reward == 1.0)
                assert sample.tokens[-1] == tokenizer.eos_token_id


def test_prompts_are_what_the_chat_template_makes_of_them(made: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(ARITHMETIC_R1)
    (group, *_) = load_rollout(rollout_path(made, 0)).rollout.groups
    conversation = [{"role": "user", "content": train_problems()[0].prompt}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert group.prompt.tokens.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_same_bytes_every_time(made: Path, tmp_path: Path) -> None:
    main([str(tmp_path), "--rollouts", "2", "--groups", str(GROUPS), "--samples", str(SAMPLES)])
    digests = [hashlib.sha256(rollout_path(out, 1).read_bytes()).hexdigest() for out in (made, tmp_path)]
    assert digests[0] == digests[1]
