"""python -m r1hpc.rehearsal.teach OUT: an R1 that does sums and is right some 40 % of the time.

It learns from worked answers, which are right, and from guesses, most of which are wrong: then GRPO has something to
find in nearly every group of answers. Supervised training with transformers' model, which is not the trainer's: what is
wrong in both would otherwise not be seen.

The tiny R1 takes a core three minutes, in float32. A wider one (--config) takes a GPU a minute (--device cuda), in
bfloat16 on float32 masters; 30 to 60 % of its answers to held-out problems should then be right, which is printed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from r1hpc.checkpoint.names import TensorName
from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.arithmetic import WORDS, Problem, held_out_problems, taught_problems, write_prompts
from r1hpc.rehearsal.exam import share_right
from r1hpc.rehearsal.expert_balance import ExpertBalance
from r1hpc.rehearsal.lesson_tokens import LessonTokens
from r1hpc.rehearsal.master_weights import MasterWeights
from r1hpc.rehearsal.pace import Pace
from r1hpc.rehearsal.tiny_checkpoint import write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.rehearsal.tiny_weights import tensor_values

SHARDS = 2
WARM_UP = 0.1
"""Of the steps; then the learning rate falls to nearly nothing."""
SAY_EVERY = 25

WORKED_FIRST, WORKED_LAST = 0.6, 0.4
"""Share of worked answers: first to learn how, then as often as is wanted. It falls over the second half."""
RIGHT_GUESSES = 0.25
"""Share of the guesses."""
TO_RESIDUAL = ("o_proj.weight", "down_proj.weight", "experts.down_proj")
"""Ends of the names of the matrices whose products are added to the residual stream."""


Model = Any
"""A DeepseekV3ForCausalLM: transformers' types do not pass a strict check."""


def untaught_model(config: Mapping[str, Any], pace: Pace, device: torch.device, seed: int) -> Model:
    """An R1 of transformers with random weights, float32. config: that of `tiny_config`, without mtp and fp8."""
    build: Any = DeepseekV3ForCausalLM._from_config
    torch.manual_seed(seed)
    with device:  # random numbers are drawn where they stay: a billion of them take a core ten seconds
        model = build(
            DeepseekV3Config(**{**config, "initializer_range": pace.initial_deviation}),
            attn_implementation="eager",
            experts_implementation=pace.experts,
            dtype=torch.float32,
        )
    if pace.residual_deviation != pace.initial_deviation:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith(TO_RESIDUAL):
                    weight *= pace.residual_deviation / pace.initial_deviation
    return model


def teach(config: Mapping[str, Any], pace: Pace, device: torch.device, seed: int, say: Callable[[str], None]) -> Model:
    """The taught model, on `device` and in the pace's precision."""
    model = untaught_model(config, pace, device, seed)
    tokens = LessonTokens(config, taught_problems())
    balance = ExpertBalance(model)
    weights = MasterWeights(model, pace.precision)
    optimizer = torch.optim.AdamW(
        weights.values,
        pace.peak_learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        fused=True if device.type == "cuda" else None,
    )
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, pace.peak_learning_rate, pace.steps, pct_start=WARM_UP)
    begin = time.monotonic()
    for step, lesson in enumerate(lessons(pace, random.Random(seed)), 1):
        losses = [_learn(model, *tokens.batch(part, device), pace.tokens) for part in halves(lesson)]
        weights.take_gradients()
        torch.nn.utils.clip_grad_norm_(weights.values, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        weights.give_weights()
        rates.step()
        balance.step()
        if step % SAY_EVERY == 0 or step == pace.steps:
            loss = float(sum(losses)) / pace.batch  # waits for a GPU, which else has the next step already
            say(f"step {step} of {pace.steps}: {loss:.2f} nats a response, {_clock(step, pace.steps, begin)}")
    return model


def _clock(step: int, steps: int, begin: float) -> str:
    took_s = time.monotonic() - begin
    return f"{took_s:.0f} s, {step / took_s:.1f} steps/s, {took_s / step * (steps - step):.0f} s left"


def lessons(pace: Pace, draw: random.Random) -> Iterator[list[tuple[Problem, str]]]:
    """The batches of all steps: problems, each with a response."""
    asked = taught_problems()
    for step in range(pace.steps):
        late = max(0.0, 2 * step / pace.steps - 1)
        worked = WORKED_FIRST + late * (WORKED_LAST - WORKED_FIRST)
        yield [(problem, draw_response(problem, worked, draw)) for problem in draw.choices(asked, k=pace.batch)]


def halves(lesson: list[tuple[Problem, str]]) -> Iterator[list[tuple[Problem, str]]]:
    """The shorter half and the longer one: a third less padding."""
    ordered = sorted(lesson, key=lambda pair: len(pair[1]))
    middle = len(ordered) // 2
    yield from (ordered[:middle], ordered[middle:])


def _learn(model: Model, rows: Tensor, targets: Tensor, tokens: int) -> Tensor:
    """Add this part's share of the gradient; returns the sum over its rows of the -log-prob of the response."""
    logits = model(rows).logits[:, :-1].float()
    loss: Any = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")
    (loss / tokens).backward()
    return loss.detach()  # type: ignore[no-any-return]


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
            return _stored(_expert_values(state, source, name.expert), torch.bfloat16)
        if source not in state:
            return tensor_values(name, seed)
        return _stored(state[source], torch.float32 if name.float32 else torch.bfloat16)

    return values


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, for one file cannot hold two tensors that share memory."""
    return tensor.to("cpu", dtype, copy=True)


def _expert_values(state: dict[str, Tensor], name: str, expert: int) -> Tensor:
    """transformers holds the experts of a layer as one tensor, gate above up."""
    layer, _, projection = name.rpartition(f".{expert}.")
    if projection == "down_proj.weight":
        return state[f"{layer}.down_proj"][expert]
    gate, up = state[f"{layer}.gate_up_proj"][expert].chunk(2)
    return gate if projection == "gate_proj.weight" else up


def main(arguments: Sequence[str] | None = None) -> int:
    """Teach a model and write its checkpoint; problems go to standard error, without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        _make(options)
    except R1hpcError as error:
        print(f"teach: {error}", file=sys.stderr)
        return 1
    return 0


def _make(options: argparse.Namespace) -> None:
    config = tiny_config(options.config, {}, mtp=False, fp8=False)
    pace = Pace.of(config)
    pace = replace(pace, steps=options.steps or pace.steps)
    begin = time.monotonic()
    model = teach(config, pace, options.device, options.seed, lambda line: print(line, flush=True))
    held_out = held_out_problems()
    right = share_right(model, LessonTokens(config, held_out), held_out)
    print(f"{right:.0%} right of {len(held_out)} held-out problems, {time.monotonic() - begin:.0f} s", flush=True)
    stored = tiny_config(options.config, {}, mtp=True, fp8=True)
    values = checkpoint_values(model, options.seed)
    made = write_checkpoint(options.out, stored, values, shards=SHARDS, force=options.force, words=WORDS)
    took = f"{made.size_bytes / 1e6:.1f} MB in {made.num_shards} files, {time.monotonic() - begin:.0f} s"
    print(f"{made.directory}: {made.num_tensors} tensors, {took}")
    if options.prompts is not None:
        write_prompts(options.prompts / "prompts.jsonl", options.prompts / "held_out.jsonl")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m r1hpc.rehearsal.teach",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to make")
    parser.add_argument("--config", type=Path, default=TINY_R1, help="the model's config.json (default: tiny-r1's)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="fewer or more than the size of the model asks for")
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="also write prompts.jsonl and held_out.jsonl there")
    parser.add_argument("--seed", type=int, default=0, help="of weights and lessons (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint that is in OUT")
    return parser


if __name__ == "__main__":
    sys.exit(main())
