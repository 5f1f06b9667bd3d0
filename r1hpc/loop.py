"""The loop: sample, train, commit, again; a colocated run of GRPO as it is spoken of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

from r1hpc.account import Account, Made, memory_numbers
from r1hpc.clock import SaveClock
from r1hpc.colocate import Colocation, Entering
from r1hpc.interrupt import Interrupt, OutOfTime
from r1hpc.rollout.evaluation import EvalResult
from r1hpc.rollout.recorded import Rollouts
from r1hpc.rollout.sampler import Rollout
from r1hpc.saving import Saving


class Evaluation(Protocol):
    """The held-out sets."""

    async def evaluate(self, rollout_id: int, weight_version: int) -> list[EvalResult]:
        """One result a set."""


@dataclass(frozen=True)
class Loop:
    """Everything that an iteration needs."""

    colocation: Colocation
    rollouts: Rollouts
    evaluation: Evaluation | None
    eval_interval: int
    saving: Saving
    clock: SaveClock
    account: Account
    interrupt: Interrupt
    first: int
    """Iteration that this attempt begins with."""
    num_rollout: int
    trains: bool = True

    async def run(self) -> None:
        """Iterate to the end. Raises StopRequested or OutOfTime where the attempt has to leave before it."""
        for iteration in range(self.first, self.num_rollout):
            self._check_time(iteration)
            with self.account.iteration(iteration) as made:
                rollout = await self._sample(iteration, made)
                await self._finish_saving(made)
                if self.trains:
                    await self._train(iteration, rollout, made)
        await self._evaluate_the_end()
        await self.saving.finish()

    def _check_time(self, iteration: int) -> None:
        self.interrupt.check(f"before iteration {iteration}")
        if (why := self.clock.out_of_time()) is not None:
            raise OutOfTime(f"no time for iteration {iteration}: {why}")

    def _check_update(self, iteration: int) -> None:
        """Once an update has begun that does not end in time, nothing that was trained before can be committed."""
        if (why := self.clock.no_time_for_update()) is not None:
            self.interrupt.check(f"before iteration {iteration} was trained: {why}")
            raise OutOfTime(f"no time to train iteration {iteration}: {why}")

    async def _sample(self, iteration: int, made: Made) -> Rollout:
        async with self.colocation.rollout_phase(self._until_asked(iteration)):
            if self.evaluation is not None and iteration % self.eval_interval == 0:
                with made.seconds.part("eval"):
                    made.evals = await self._evaluate(self.evaluation, iteration)
            self.account.doing("rollout", iteration)
            with made.seconds.part("rollout"):
                sampling = self.rollouts.rollout(iteration, self.colocation.version)
                rollout = await self.interrupt.unless(sampling, f"while iteration {iteration} was sampled")
            self.saving.sampled()
        made.rollout = rollout.report
        return rollout

    def _until_asked(self, iteration: int) -> Entering:
        return partial(self.interrupt.unless, doing=f"while the engines took the weights before iteration {iteration}")

    async def _finish_saving(self, made: Made) -> None:
        """The optimizer may not change what a commit is still written from."""
        with made.seconds.part("save"):
            await self.saving.finish()

    async def _train(self, iteration: int, rollout: Rollout, made: Made) -> None:
        self._check_update(iteration)
        async with self.colocation.train_phase() as trainers:
            self._check_update(iteration)
            self.account.doing("update", iteration)
            with made.seconds.part("update"):
                updating = trainers.update(rollout.samples, iteration)
                with self.saving.update(iteration):
                    made.update = await self.interrupt.within(
                        updating, f"while iteration {iteration} was trained", self.clock.patience_s
                    )
            made.memory = memory_numbers(await trainers.memory())
        self.colocation.version = iteration + 1
        await self.saving.commit_if_due(last=iteration + 1 == self.num_rollout)

    async def _evaluate(self, evaluation: Evaluation, iteration: int) -> list[EvalResult]:
        self.account.doing("eval", iteration)
        evaluating = evaluation.evaluate(iteration, self.colocation.version)
        return await self.interrupt.unless(evaluating, f"while the weights before iteration {iteration} were evaluated")

    async def _evaluate_the_end(self) -> None:
        if self.evaluation is None or not self.trains:
            return
        async with self.colocation.rollout_phase(self._until_asked(self.num_rollout)):
            self.account.add_final_evaluation(await self._evaluate(self.evaluation, self.num_rollout))
