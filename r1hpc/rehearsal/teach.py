"""python -m r1hpc.rehearsal.teach OUT: a tiny R1 that does sums and is right some 40 % of the time.

It learns from worked answers, which are right, and from guesses, most of which are wrong: then GRPO has something to
find in nearly every group of answers. Supervised training in float32 with transformers' model, which is not the
trainer's: what is wrong in both would otherwise not be seen.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1hpc.checkpoint.names import TensorName
from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.arithmetic import WORDS, Problem, taught_problems
from r1hpc.rehearsal.expert_balance import ExpertBalance
from r1hpc.rehearsal.lesson_tokens import LessonTokens
from r1hpc.rehearsal.tiny_checkpoint import write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.rehearsal.tiny_weights import tensor_values

SHARDS = 2
STEPS = 400
BATCH = 64
TOKENS = BATCH * 16
"""That the gradient is divided by: about those of the responses of a batch."""
PEAK_LEARNING_RATE = 3e-3
WARM_UP = 0.1
"""Of the steps; then the learning rate falls to nearly nothing."""
INITIAL_DEVIATION = 0.06
"""Of the weights, larger than the config's 0.02, which is for a wider model."""

WORKED_FIRST, WORKED_LAST = 0.6, 0.4
"""Share of worked answers: first to learn how, then as often as is wanted. It falls over the second half."""
RIGHT_GUESSES = 0.25
"""Share of the guesses."""


Model = Any
"""A DeepseekV3ForCausalLM: transformers' types do not pass a strict check."""


def untaught_model(seed: int) -> Model:
    """The tiny R1 of transformers with random weights, float32."""
    values = tiny_config(TINY_R1, {"initializer_range": INITIAL_DEVIATION}, mtp=False, fp8=False)
    build: Any = DeepseekV3ForCausalLM._from_config
    torch.manual_seed(seed)
    # Experts one after another: transformers would choose grouped products, which are no faster on a CPU.
    return build(
        DeepseekV3Config(**values),
        attn_implementation="eager",
        experts_implementation="eager",
        dtype=torch.float32,
    )


def teach(seed: int, say: Callable[[str], None]) -> Model:
    """The taught model. Some three minutes of one core."""
    model = untaught_model(seed)
    tokens = LessonTokens(tiny_config(TINY_R1, {}, mtp=False, fp8=False), taught_problems())
    balance = ExpertBalance(model)
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.1)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, STEPS, pct_start=WARM_UP)
    begin = time.monotonic()
    for step, lesson in enumerate(lessons(random.Random(seed)), 1):
        loss = sum(_learn(model, tokens.batch(part)) for part in halves(lesson)) / BATCH
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
        balance.step()
        if step % 50 == 0:
            say(f"step {step} of {STEPS}: {loss:.2f} nats a response, {time.monotonic() - begin:.0f} s")
    return model


def lessons(draw: random.Random) -> Iterator[list[tuple[Problem, str]]]:
    """The batches of all steps: problems, each with a response."""
    asked = taught_problems()
    for step in range(STEPS):
        late = max(0.0, 2 * step / STEPS - 1)
        worked = WORKED_FIRST + late * (WORKED_LAST - WORKED_FIRST)
        yield [(problem, draw_response(problem, worked, draw)) for problem in draw.choices(asked, k=BATCH)]


def halves(lesson: list[tuple[Problem, str]]) -> Iterator[list[tuple[Problem, str]]]:
    """The shorter half and the longer one: a third less padding."""
    ordered = sorted(lesson, key=lambda pair: len(pair[1]))
    yield from (ordered[: BATCH // 2], ordered[BATCH // 2 :])


def _learn(model: Model, batch: tuple[Tensor, Tensor]) -> float:
    """Add this part's share of the gradient; returns the sum over its rows of the -log-prob of the response."""
    rows, targets = batch
    logits = model(rows).logits[:, :-1]
    loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")
    (loss / TOKENS).backward()
    return float(loss)


def draw_response(problem: Problem, worked: float, draw: random.Random) -> str:
    """Worked out with this probability, else guessed."""
    if draw.random() < worked:
        return problem.worked_response
    return problem.guess(0 if draw.random() < RIGHT_GUESSES else draw.choice(problem.slips))


def checkpoint_values(model: Model, seed: int) -> Callable[[TensorName], Tensor]:
    """The model's tensors by their released names. The MTP layer, which nobody taught, has random ones."""
    state: dict[str, Tensor] = model.state_dict()

    def values(name: TensorName) -> Tensor:
        source = name.copy_of or name.hf
        if name.expert is not None and name.layer is not None and name.layer < model.config.num_hidden_layers:
            return _expert_values(state, source, name.expert).bfloat16()
        if source not in state:
            return tensor_values(name, seed)
        return state[source].clone() if name.float32 else state[source].bfloat16()

    return values


def _expert_values(state: dict[str, Tensor], name: str, expert: int) -> Tensor:
    """transformers holds the experts of a layer as one tensor, gate above up."""
    layer, _, projection = name.rpartition(f".{expert}.")
    if projection == "down_proj.weight":
        return state[f"{layer}.down_proj"][expert]
    gate, up = state[f"{layer}.gate_up_proj"][expert].chunk(2)
    return gate if projection == "gate_proj.weight" else up


def main(arguments: Sequence[str] | None = None) -> int:
    """Teach a model and write its checkpoint; problems go to standard error, without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.rehearsal.teach", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--seed", type=int, default=0, help="of weights and lessons (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint that is in OUT")
    options = parser.parse_args(arguments)
    config = tiny_config(TINY_R1, {}, mtp=True, fp8=True)
    try:
        model = teach(options.seed, lambda line: print(line, flush=True))
        values = checkpoint_values(model, options.seed)
        made = write_checkpoint(options.out, config, values, shards=SHARDS, force=options.force, words=WORDS)
    except R1hpcError as error:
        print(f"teach: {error}", file=sys.stderr)
        return 1
    print(f"{made.directory}: {made.num_tensors} tensors, {made.size_bytes / 1e6:.1f} MB in {made.num_shards} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
