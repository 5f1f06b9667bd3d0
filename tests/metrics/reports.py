"""Reports of the parts, in round numbers, for records that can be checked by hand."""

from __future__ import annotations

from r1hpc.metrics.build import Circumstances
from r1hpc.metrics.record import IterationRecord, RolloutNumbers
from r1hpc.rollout.evaluation import EvalResult
from r1hpc.rollout.report import GroupCounts, RolloutReport, SampleStatistics, Timing


def rollout_report() -> RolloutReport:
    """4 groups kept of 10; 2,000 tokens in 8 s, 500 of them thrown away."""
    return RolloutReport(
        rollout_id=3,
        weight_version=3,
        timing=Timing(total=8.0, stop=0.5),
        groups=GroupCounts(
            waves=2,
            submitted=10,
            kept=4,
            rejected={"all_right": 2, "all_wrong": 1},
            failed=0,
            surplus=1,
            aborted=2,
            recycled=3,
            given_up=0,
            dropped=0,
        ),
        kept=SampleStatistics(
            truncated=0.25, tokens=1200, stale_tokens=100, response_len_mean=75.0, response_len_max=90, reward_mean=0.5
        ),
        queued=3,
        generated_tokens=2000,
        wasted_tokens=500,
        reward_mean_finished=0.75,
        reward_outcomes={"graded": 27, "timeout": 1},
    )


def eval_result(name: str = "heldout", weight_version: int = 3, accuracy: float = 0.625) -> EvalResult:
    """64 prompts of which one was given up on."""
    return EvalResult(
        name=name,
        weight_version=weight_version,
        num_prompts=64,
        samples_per_prompt=2,
        reward_mean=accuracy,
        pass_at={1: accuracy, 2: 0.75},
        truncated=0.0,
        response_len_mean=20.5,
        response_len_max=31,
        failed=("prompt 7: given up",),
        seconds=3.0,
    )


def circumstances(iteration: int = 3) -> Circumstances:
    """20 s on 8 GPUs."""
    return Circumstances(
        iteration=iteration,
        attempt="41-r0",
        finished=1000.0,
        gpus=8,
        seconds={"iteration": 20.0, "sync": 2.0},
        committed=1,
        saving=2,
        sync={"bytes": 4096},
        memory={"gpu_free_bytes": 10},
    )


def record(iteration: int, *, attempt: str = "41-r0", reward: float = 0.5, seconds: float = 10.0) -> IterationRecord:
    """A short one."""
    numbers = RolloutNumbers(
        weight_version=iteration,
        reward=reward,
        reward_finished=0.25,
        response_len_mean=10.0,
        response_len_max=20,
        truncated=0.0,
        generated_tokens=100,
        kept_tokens=80,
        stale_tokens=0,
        wasted_tokens=20,
        wasted=0.2,
        queued=0,
    )
    return IterationRecord(
        iteration=iteration,
        attempt=attempt,
        finished=1000.0 + seconds * (iteration + 1),
        gpus=2,
        rollout=numbers,
        seconds={"iteration": seconds},
    )
