"""How arithmetic is taught: the lessons, what of them is learned, and the names that weights are saved under."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from r1hpc.rehearsal.arithmetic import WORDS, Problem, held_out_problems
from r1hpc.rehearsal.expert_balance import SPEED, ExpertBalance
from r1hpc.rehearsal.lesson_tokens import UNTRAINED, LessonTokens
from r1hpc.rehearsal.teach import BATCH, STEPS, checkpoint_values, draw_response, halves, lessons, untaught_model
from r1hpc.rehearsal.tiny_checkpoint import write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config

SUM, DIFFERENCE = Problem(23, "+", 48), Problem(71, "-", 48)
PROMPT = [1, 261, 263, *(3 + ord(letter) for letter in "23+48?"), 262, 259, 13]
"""Begin, User, "What is ", bytes, Assistant, <think>, new line."""


@pytest.fixture
def model() -> Any:
    return untaught_model(seed=0)


def test_only_the_response_and_its_end_are_learned() -> None:
    tokens = LessonTokens(tiny_config(TINY_R1, {}, mtp=False, fp8=False), [SUM, DIFFERENCE])
    rows, targets = tokens.batch([(SUM, SUM.guess(0)), (DIFFERENCE, DIFFERENCE.worked_response)])
    guess = [13, 260, 13, 264, 3 + ord("7"), 3 + ord("1"), 3 + ord("}"), 2]
    assert rows[0, : len(PROMPT) + len(guess)].tolist() == PROMPT + guess
    assert targets[0].tolist()[len(PROMPT) : len(PROMPT) + len(guess)] == guess
    assert (
        set(targets[0].tolist()[: len(PROMPT)]) == set(targets[0].tolist()[len(PROMPT) + len(guess) :]) == {UNTRAINED}
    )
    worked = [3 + ord(letter) for letter in "11-8=3,6-4=2"]
    assert targets[1, len(PROMPT) : len(PROMPT) + len(worked)].tolist() == worked


def test_lessons_hold_nothing_held_out_and_their_shares_are_as_said() -> None:
    found = list(lessons(random.Random(0)))
    assert (len(found), len(found[0])) == (STEPS, BATCH)
    assert not {problem for lesson in found for problem, _ in lesson} & set(held_out_problems())
    draw = random.Random(1)
    drawn = [draw_response(SUM, 0.3, draw) for _ in range(20_000)]
    # Standard deviations are below 0.4 points.
    assert drawn.count(SUM.worked_response) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert drawn.count(SUM.guess(0)) / 20_000 == pytest.approx(0.7 * 0.25, abs=0.015)
    assert set(drawn) == {SUM.worked_response, *(SUM.guess(slip) for slip in (0, *SUM.slips))}


def test_halves_are_the_whole_lesson_by_length() -> None:
    (lesson, *_) = lessons(random.Random(0))
    shorter, longer = halves(lesson)
    assert sorted(shorter + longer, key=str) == sorted(lesson, key=str)
    assert max(len(text) for _, text in shorter) <= min(len(text) for _, text in longer)


def test_experts_chosen_more_often_than_others_become_less_attractive(model: Any) -> None:
    balance = ExpertBalance(model)
    layer = model.model.layers[1].mlp
    hidden = torch.zeros(3, 128)
    # Expert 0 is chosen three times, 1 twice, 2 once; the mean of 8 experts is 6 / 8.
    layer.experts(hidden, torch.tensor([[0, 1], [0, 1], [0, 2]]), torch.full((3, 2), 0.5))
    balance.step()
    expected = torch.tensor([-1, -1, -1, 1, 1, 1, 1, 1]) * SPEED
    assert torch.equal(layer.gate.e_score_correction_bias, expected)
    assert not model.model.layers[2].mlp.gate.e_score_correction_bias.any()
    balance.step()
    assert torch.equal(layer.gate.e_score_correction_bias, expected), "counted anew each step"


def test_a_saved_model_is_the_one_that_transformers_loads(model: Any, tmp_path: Path) -> None:
    for layer, bias in enumerate(block.mlp.gate.e_score_correction_bias for block in model.model.layers[1:]):
        bias.uniform_(0, 0.1 + layer)
    config = tiny_config(TINY_R1, {}, mtp=True, fp8=False)
    write_checkpoint(tmp_path / "saved", config, checkpoint_values(model, 0), shards=2, force=False, words=WORDS)
    load: Any = DeepseekV3ForCausalLM.from_pretrained
    loaded, report = load(tmp_path / "saved", dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(name.startswith("model.layers.5.") for name in report["unexpected_keys"]), "MTP alone"
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, values in model.state_dict().items():
        kept = values if name.endswith("e_score_correction_bias") else values.bfloat16().float()
        assert torch.equal(state[name], kept), name
