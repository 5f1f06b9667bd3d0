"""python -m r1hpc.rehearsal.made_rollouts OUT: rollouts of the arithmetic task that no engine has sampled.

What a drill trains on where engines do not matter: the same bytes every time, in a second. Loads no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray
from tokenizers import Tokenizer  # type: ignore[import-untyped]

from r1hpc.rehearsal.arithmetic import Problem, train_problems
from r1hpc.rehearsal.arithmetic_model import ARITHMETIC_R1
from r1hpc.rehearsal.tiny_tokenizer import BOS, EOS
from r1hpc.rollout.group import Group
from r1hpc.rollout.report import GroupCounts, RolloutReport, SampleStatistics, Timing
from r1hpc.rollout.rollout_file import RecordedRollout, rollout_path, save_rollout
from r1hpc.rollout.sampler import Rollout
from r1hpc.rollout.state import SamplerState
from r1hpc.types import Prompt, Sample

LOGPROB = -0.5
"""Of every token: nobody sampled them, and training on replayed rollouts only reports how far off it is."""

Tokens = NDArray[numpy.int32]


class MadeRollouts:
    """Rollouts of a size; in each group every third answer is worked out and right, the others are wrong guesses."""

    def __init__(self, num_groups: int, num_samples: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(ARITHMETIC_R1 / "tokenizer.json"))
        self._problems = train_problems()
        self._num_groups, self._num_samples = num_groups, num_samples

    def make(self, rollout_id: int) -> RecordedRollout:
        """Rollout `rollout_id`, of problems that no other one asks while the data lasts."""
        first = rollout_id * self._num_groups
        groups = [self._group(index, rollout_id) for index in range(first, first + self._num_groups)]
        state = SamplerState(cursor={}, next_group=first + self._num_groups, queue=())
        return RecordedRollout(Rollout(groups, _report(rollout_id, groups)), state)

    def _group(self, index: int, rollout_id: int) -> Group:
        epoch, place = divmod(index, len(self._problems))
        problem = self._problems[place]
        prompt = Prompt(place, epoch, self._tokens(prompt_text(problem)), problem.label)
        begin = index % self._num_groups * self._num_samples
        samples = [
            self._sample(prompt, problem, number, begin + number, index, rollout_id)
            for number in range(self._num_samples)
        ]
        return Group(index, prompt, tuple(samples))

    def _sample(self, prompt: Prompt, problem: Problem, number: int, index: int, group: int, rollout_id: int) -> Sample:
        right = number % 3 == 0
        text = problem.worked_response if right else problem.guess(problem.slips[number % len(problem.slips)])
        response = self._tokens(text + EOS)
        return Sample(
            index=index,
            group_index=group,
            tokens=numpy.concatenate([prompt.tokens, response]),
            response_len=len(response),
            reward=float(right),
            rollout_logprobs=numpy.full(len(response), LOGPROB, numpy.float32),
            weight_version=rollout_id,
            rollout_id=rollout_id,
        )

    def _tokens(self, text: str) -> Tokens:
        return numpy.array(self._tokenizer.encode(text, add_special_tokens=False).ids, numpy.int32)


def prompt_text(problem: Problem) -> str:
    """What the chat template makes of a problem."""
    return f"{BOS}<｜User｜>{problem.prompt}<｜Assistant｜><think>\n"  # noqa: RUF001 (the released spelling)


def _report(rollout_id: int, groups: Sequence[Group]) -> RolloutReport:
    kept = SampleStatistics.of(groups, stale_tokens=0)
    return RolloutReport(
        rollout_id=rollout_id,
        weight_version=rollout_id,
        timing=Timing(total=1.0, stop=0.0),
        groups=GroupCounts(
            waves=1,
            submitted=len(groups),
            kept=len(groups),
            rejected={},
            failed=0,
            surplus=0,
            aborted=0,
            recycled=0,
            given_up=0,
            dropped=0,
        ),
        kept=kept,
        queued=0,
        generated_tokens=kept.tokens,
        wasted_tokens=0,
        reward_mean_finished=kept.reward_mean,
        reward_outcomes={"graded": sum(len(group.samples) for group in groups)},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the rollouts."""
    parser = argparse.ArgumentParser(prog="python -m r1hpc.rehearsal.made_rollouts", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--groups", type=int, required=True, help="rollout.rollout_batch_size")
    parser.add_argument("--samples", type=int, required=True, help="rollout.n_samples_per_prompt")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    made = MadeRollouts(given.groups, given.samples)
    for rollout_id in range(given.rollouts):
        save_rollout(rollout_path(given.out, rollout_id), made.make(rollout_id))
    return 0


if __name__ == "__main__":
    sys.exit(main())
