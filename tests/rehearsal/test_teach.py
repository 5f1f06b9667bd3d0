"""How arithmetic is taught: the lessons, what of them is learned, and the names that weights are saved under."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.rehearsal.arithmetic import NUM_HELD_OUT, NUM_TRAIN, WORDS, Problem, held_out_problems
from r1hpc.rehearsal.exam import SAMPLES, answer_of, share_right
from r1hpc.rehearsal.expert_balance import SPEED, ExpertBalance
from r1hpc.rehearsal.lesson_tokens import UNTRAINED, LessonTokens
from r1hpc.rehearsal.master_weights import MasterWeights
from r1hpc.rehearsal.pace import Pace
from r1hpc.rehearsal.teach import checkpoint_values, draw_response, halves, lessons, main, teach, untaught_model
from r1hpc.rehearsal.tiny_checkpoint import write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config

SUM, DIFFERENCE = Problem(23, "+", 48), Problem(71, "-", 48)
PROMPT = [1, 261, 263, *(3 + ord(letter) for letter in "23+48?"), 262, 259, 13]
"""Begin, User, "What is ", bytes, Assistant, <think>, new line."""
CPU = torch.device("cpu")
TINY = tiny_config(TINY_R1, {}, mtp=False, fp8=False)
GPU_R1 = TINY_R1.parents[1] / "gpu-r1" / "config.json"
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 128,
    "vocab_size": 512,
}
"""Of the tiny R1: wide enough to be taught as a model that has a GPU, and little else."""


@pytest.fixture
def model() -> Any:
    return untaught_model(TINY, Pace.of(TINY), CPU, seed=0)


def test_only_the_response_and_its_end_are_learned() -> None:
    tokens = LessonTokens(TINY, [SUM, DIFFERENCE])
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
    found = list(lessons(Pace.of(TINY), random.Random(0)))
    assert (len(found), len(found[0])) == (400, 64)
    assert not {problem for lesson in found for problem, _ in lesson} & set(held_out_problems())
    draw = random.Random(1)
    drawn = [draw_response(SUM, 0.3, draw) for _ in range(20_000)]
    # Standard deviations are below 0.4 points.
    assert drawn.count(SUM.worked_response) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert drawn.count(SUM.guess(0)) / 20_000 == pytest.approx(0.7 * 0.25, abs=0.015)
    assert set(drawn) == {SUM.worked_response, *(SUM.guess(slip) for slip in (0, *SUM.slips))}


def test_halves_are_the_whole_lesson_by_length() -> None:
    (lesson, *_) = lessons(Pace.of(TINY), random.Random(0))
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


def test_wider_models_begin_smaller_and_take_smaller_steps() -> None:
    wide = Pace.of(tiny_config(GPU_R1, {}, mtp=False, fp8=False))
    # 16 times as wide: by 16 ** 0.5 and 16 ** 0.75. Each of 5 layers adds twice to the residual stream.
    assert wide.initial_deviation == pytest.approx(0.06 / 4)
    assert wide.residual_deviation == pytest.approx(0.06 / 4 / math.sqrt(10))
    assert wide.peak_learning_rate == pytest.approx(3e-3 / 8)
    assert (wide.precision, wide.experts) == ("bfloat16", "grouped_mm")
    tiny = Pace.of(TINY)
    assert (tiny.peak_learning_rate, tiny.initial_deviation, tiny.residual_deviation) == (3e-3, 0.06, 0.06)
    assert (tiny.precision, tiny.experts, tiny.tokens) == ("float32", "eager", 1024)


def test_what_adds_to_the_residual_stream_begins_smaller() -> None:
    config = tiny_config(TINY_R1, SMALL, mtp=False, fp8=False)
    pace = Pace.of(config)
    model = untaught_model(config, pace, CPU, seed=0)
    weights = dict(model.named_parameters())
    scaled = {
        "self_attn.o_proj.weight",
        "mlp.down_proj.weight",
        "mlp.experts.down_proj",
        "mlp.shared_experts.down_proj",
    }
    found = set()
    for name, weight in weights.items():
        if weight.dim() > 1:
            small = any(name.endswith((end, f"{end}.weight")) for end in scaled)
            found |= {end for end in scaled if name.endswith((end, f"{end}.weight"))}
            expected = pace.residual_deviation if small else pace.initial_deviation
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05), name
    assert found == scaled


def test_masters_keep_changes_that_bfloat16_would_lose(model: Any) -> None:
    weights = MasterWeights(model, "bfloat16")
    bias = model.model.layers[1].mlp.gate.e_score_correction_bias
    assert bias.dtype == torch.float32, "balance moves it by less than bfloat16 tells apart"
    (weight,) = [own for name, own in model.named_parameters() if name == "model.norm.weight"]
    (master,) = [own for own in weights.values if own.shape == weight.shape and torch.equal(own, weight.float())][-1:]
    model(torch.tensor([[1, 2, 3]])).logits.float().square().sum().backward()
    gradient = weight.grad.float()
    weights.take_gradients()
    assert weight.grad is None
    assert master.grad is not None and torch.equal(master.grad, gradient)
    # 1 and the next larger bfloat16, 1 + 2 ** -7: three steps of a quarter make the way more than half.
    for steps, expected in enumerate((1.0, 1.0, 1 + 2**-7), 1):
        with torch.no_grad():
            master.add_(2**-9)
        weights.give_weights()
        assert set(weight.tolist()) == {expected}, steps


def test_grouped_experts_in_bfloat16_learn_what_those_in_float32_do() -> None:
    config = tiny_config(TINY_R1, SMALL, mtp=False, fp8=False)
    pace = replace(Pace.of(config), steps=8, batch=8)
    said: list[str] = []
    large = teach(config, pace, CPU, 0, said.append)
    plain = teach(config, replace(pace, precision="float32", experts="eager"), CPU, 0, said.append)
    assert {own.dtype for own in large.parameters()} == {torch.bfloat16}
    first, second = (float(line.split(": ")[1].split()[0]) for line in said)
    # Untaught it would be 13 tokens and more of log(512) = 6.2 each.
    assert first == pytest.approx(second, rel=0.03) and first < 70
    biases = [own.model.layers[1].mlp.gate.e_score_correction_bias for own in (large, plain)]
    assert torch.allclose(biases[0], biases[1], atol=4 * SPEED) and biases[0].any()


def test_a_wider_model_is_taught_and_written_with_its_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(TINY_R1, SMALL, mtp=True, fp8=True)))
    words = [
        str(tmp_path / "r1"),
        "--config",
        str(tmp_path / "config.json"),
        "--steps",
        "2",
        "--prompts",
        str(tmp_path),
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "step 2 of 2: " in said and " steps/s, 0 s left" in said
    assert f"0% right of {NUM_HELD_OUT} held-out problems" in said
    assert open_checkpoint(tmp_path / "r1").shape.hidden_size == 256  # raises where it is not whole
    for file, lines in (("prompts.jsonl", NUM_TRAIN), ("held_out.jsonl", NUM_HELD_OUT)):
        assert len((tmp_path / file).read_text().splitlines()) == lines
    assert main(words) == 1
    assert "r1: exists; give another directory, or --force" in capsys.readouterr().err


def test_an_answer_is_what_stands_in_the_box_behind_the_thinking() -> None:
    assert answer_of(SUM.worked_response) == "71"
    assert answer_of("1+1\n</think>\n\\boxed{7") is None
    assert answer_of("\\boxed{71}") is None


def test_the_exam_counts_right_answers() -> None:
    class Knows:
        """Answers SUM right, in every sample, and DIFFERENCE never."""

        device = CPU

        def __init__(self) -> None:
            self.step = 0

        def __call__(self, rows: torch.Tensor, **cache: object) -> Any:
            _, targets = tokens.batch([(SUM, SUM.guess(0)), (DIFFERENCE, DIFFERENCE.guess(1))])
            answers = [row[row != UNTRAINED] for row in targets]
            logits = torch.full((len(rows), 1, 320), -1e9)
            for row in range(len(rows)):
                answer = answers[row // SAMPLES].tolist()
                logits[row, 0, answer[min(self.step, len(answer) - 1)]] = 0
            self.step += 1
            return SimpleNamespace(logits=logits, past_key_values=None)

    tokens = LessonTokens(TINY, [SUM, DIFFERENCE])
    assert share_right(Knows(), tokens, [SUM, DIFFERENCE]) == 0.5
