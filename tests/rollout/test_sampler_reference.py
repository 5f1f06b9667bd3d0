"""With `recycle: none` a rollout is the reference's, group for group: held against a plain account of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.rollout.sampler import Rollout
from tests.rollout.scripted import Key, Script, key_of, make_rig, rollout_config


@dataclass
class Expected:
    kept: list[Key] = field(default_factory=list)
    rejected: list[Key] = field(default_factory=list)
    surplus: list[Key] = field(default_factory=list)
    aborted: list[Key] = field(default_factory=list)
    waves: int = 0
    submitted: int = 0


def reference(script: Script, *, target: int, wave: int, samples: int, first: int, num_prompts: int) -> Expected:
    """One rollout as the recipe describes it, in a loop over time; `first` prompts were taken before."""
    out = Expected()
    in_flight: list[tuple[int, int]] = []  # (time at which its slowest sample ends, number of the prompt)
    now = 0
    while len(out.kept) < target:
        while out.submitted - len(out.rejected) < target:
            for number in range(first + out.submitted, first + out.submitted + wave):
                epoch, index = divmod(number, num_prompts)
                in_flight.append((now + max(script.length(epoch, index, s) for s in range(samples)), number))
            out.submitted += wave
            out.waves += 1
        now = min(end for end, _ in in_flight)
        done = sorted(number for end, number in in_flight if end == now)
        in_flight = [(end, number) for end, number in in_flight if end != now]
        for number in done:
            key = divmod(number, num_prompts)
            rewards = {script.reward(*key, sample) for sample in range(samples)}
            if len(rewards) == 1:
                out.rejected.append(key)
            elif len(out.kept) < target:
                out.kept.append(key)
            else:
                out.surplus.append(key)
    out.kept.sort()
    out.aborted = sorted(divmod(number, num_prompts) for _, number in in_flight)
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    target=st.integers(1, 5),
    extra=st.integers(0, 6),
    samples=st.integers(2, 4),
    longest=st.sampled_from([1, 3, 20]),
    solvable=st.sampled_from([0.15, 0.5, 1.0]),
    num_prompts=st.integers(3, 40),
)
def test_rollouts_without_recycling_equal_the_reference(
    seed: int, target: int, extra: int, samples: int, longest: int, solvable: float, num_prompts: int
) -> None:
    script = Script(seed, longest, solvable)
    config = rollout_config(
        recycle="none",
        rollout_batch_size=target,
        over_sampling_batch_size=target + extra,
        n_samples_per_prompt=samples,
    )
    rig = make_rig(config, script, num_prompts=num_prompts)

    async def run() -> list[Rollout]:
        return [await rig.sampler.rollout(rollout_id, 0) for rollout_id in range(3)]

    first = 0
    for rollout in asyncio.run(run()):
        expected = reference(
            script, target=target, wave=target + extra, samples=samples, first=first, num_prompts=num_prompts
        )
        counts = rollout.report.groups
        assert [key_of(group.prompt) for group in rollout.groups] == expected.kept
        assert [group.index for group in rollout.groups] == [_place(key, num_prompts) for key in expected.kept]
        assert (counts.waves, counts.submitted) == (expected.waves, expected.submitted)
        assert sum(counts.rejected.values()) == len(expected.rejected)
        assert counts.surplus == len(expected.surplus)
        assert counts.aborted == len(expected.aborted)
        assert counts.dropped == len(expected.surplus) + len(expected.aborted)
        assert (counts.recycled, counts.given_up, counts.failed) == (0, 0, 0)
        rewards = [[script.reward(*key, sample) for sample in range(samples)] for key in expected.kept]
        assert [[sample.reward for sample in group.samples] for group in rollout.groups] == rewards
        assert [sample.index for sample in rollout.samples] == list(range(target * samples))
        first += expected.submitted
    assert rig.prompts.taken == first
    assert rig.engines.num_pending == 0


def _place(key: Key, num_prompts: int) -> int:
    return key[0] * num_prompts + key[1]
