"""One rank of the trainer: holds its part of the policy, and updates it from rollouts."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.checkpoint.collective import as_error, everyones, raise_together
from r1hpc.errors import R1hpcError
from r1hpc.model import compat
from r1hpc.model.build import build_model, unloaded
from r1hpc.model.dispatcher import forget_last_tokens
from r1hpc.model.parallel import Layout
from r1hpc.stopwatch import Stopwatch
from r1hpc.train.checkpoint.load import load_reference, load_trainer
from r1hpc.train.checkpoint.pieces import held_model
from r1hpc.train.checkpoint.plan import SavePlan, plan_save
from r1hpc.train.checkpoint.save import PendingSave, begin_save
from r1hpc.train.checkpoint.saved_checkpoint import SavedCheckpoint
from r1hpc.train.checkpoint.trainer_state import TrainerState
from r1hpc.train.gradients import finalize_checked
from r1hpc.train.grpo import group_advantages
from r1hpc.train.host_weights import HostWeights
from r1hpc.train.learning_rate import LearningRate, Schedule
from r1hpc.train.model_memory import ModelMemory
from r1hpc.train.optimizer import build_optimizer, wrap
from r1hpc.train.passes import Passes
from r1hpc.train.process_groups import ProcessGroups
from r1hpc.train.samples import check_samples
from r1hpc.train.schedule import StepBatches, schedule
from r1hpc.train.settings import TrainerConfig
from r1hpc.train.step import StepInputs, Stepper
from r1hpc.train.update_stats import UpdateStats
from r1hpc.types import Sample

logger = logging.getLogger(__name__)

ACTOR, REFERENCE = "actor", "ref"
"""Names of the host's copies of the weights."""

MOST_NAMED = 10
"""Weights named in an error."""


class TrainerError(R1hpcError):
    """The trainer was asked for what it cannot do as it is."""


class TrainActor:
    """Every method is collective: all ranks call it, in the same order, with the same arguments.

    The weights have three homes: the device, while the actor is awake; the host's copy "actor", taken after the last
    step of an update, which engines are sent and checkpoints are written from; the optimizer's float32 masters.
    """

    def __init__(self, config: TrainerConfig) -> None:
        """Build this rank's stage; its weights are NaN until they are loaded. torch.distributed is up."""
        self.config = config
        compat.prepare(config.model.device)
        layout = Layout.of(config.perf)
        layout.initialize(config.seed)
        # Megatron seeds its own and torch's. These too are in every commit, which two equal runs make alike.
        random.seed(config.seed)
        numpy.random.seed(config.seed)
        self.model = build_model(config.hugging_face, layout, config.model)
        self.model.config.finalize_model_grads_func = finalize_checked
        ddp = wrap(self.model)
        self.optimizer = build_optimizer(ddp, config.optimizer, offload=config.optimizer.optimizer_cpu_offload)
        self.learning_rate = LearningRate(Schedule.of(config.optimizer, config.total_steps))
        self.weights = HostWeights(self.model)
        self.memory = ModelMemory(ddp, self.weights)
        self.groups = ProcessGroups(ddp, self.optimizer) if config.rebuild_groups else None
        """Null where they are kept in sleep."""
        self.passes = Passes(ddp, temperature=config.temperature, chunk=config.perf.log_probs_chunk_size)
        self.stepper = Stepper(self.passes, self.optimizer, self.learning_rate, config.grpo)
        self.held_model = held_model(self.model)
        """Which boxes of which tensors this rank's weights are."""
        self._on_device: str | None = None
        self._steps_in_copy: int | None = None
        self._trained: int | None = None
        """Rollout that this process trained on last, or the one that it resumed after."""
        self._plan: SavePlan | None = None
        self._saving: PendingSave | None = None

    def load_reference(self, directory: Path) -> None:
        """Keep the weights of a torch_dist checkpoint as the reference."""
        self._load_weights(directory)
        self.weights.save(REFERENCE)
        self._on_device = REFERENCE

    def load(self, directory: Path) -> None:
        """Train from the weights of a torch_dist checkpoint: no optimizer state, step 0."""
        self._load_weights(directory)
        self._steps_in_copy = self._trained = None
        self.optimizer.restart()
        self._begin(LearningRate(Schedule.of(self.config.optimizer, self.config.total_steps)))

    def resume(self, directory: Path, say: Callable[[str], None] = logger.info) -> TrainerState:
        """Go on where a checkpoint of `begin_save` stands, whatever layout saved it. Notices go to the log."""
        self._check_may_load()
        self._on_device = self._steps_in_copy = None
        loaded = load_trainer(directory, self.held_model, self.optimizer, self.config.seed, say)
        configured = Schedule.of(self.config.optimizer, self.config.total_steps)
        learning_rate, notices = LearningRate.resumed(loaded.state.schedule, configured)
        if loaded.state.config_digest != self.config.digest:
            notices = [*notices, f"{directory} was trained with another configuration of the loss, sampling or model"]
        for notice in (*loaded.notices, *notices):
            logger.warning("%s", notice)
        self._begin(learning_rate)
        self._trained = loaded.state.iteration
        return loaded.state

    def begin_save(self, directory: Path, iteration: int, say: Callable[[str], None] = logger.info) -> None:
        """Begin to write `directory` out of host memory; `finish_save` must come before the next `update`.

        iteration: id of the rollout that was trained last.
        """
        if self._saving is not None:
            raise TrainerError(f"{self._saving.directory} is being written still: finish_save first")
        self._check_whole()
        if self._trained not in (None, iteration):
            raise TrainerError(f"the weights are those after rollout {self._trained}, not after {iteration}")
        if self._plan is None:
            self._plan = plan_save(self.held_model, self.optimizer.shards())
        state = TrainerState(
            iteration=iteration,
            optimizer_steps=self.optimizer.num_steps,
            schedule=self.learning_rate.state(),
            config_digest=self.config.digest,
        )
        self._saving = begin_save(directory, self._plan, self.weights.tensors(ACTOR), state, say)

    def finish_save(self) -> SavedCheckpoint:
        """Wait until every rank has written its part; the directory is there then, and complete."""
        if self._saving is None:
            raise TrainerError("no checkpoint is being written: begin_save first")
        saving, self._saving = self._saving, None
        return saving.finish()

    def abandon_save(self) -> None:
        """Stop writing a checkpoint and leave nothing of it; nothing to do where none is being written."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.abandon()

    def sleep(self) -> None:
        """Give the device's memory to the engines; after an error, what is left to be given.

        Where groups are destroyed for it, what fails on one rank is raised on all.
        """
        if self.groups is None:
            self._give_memory()
            return
        failure: R1hpcError | None = None
        if not self.memory.asleep or self.groups.dropped:
            try:
                self._give_memory()
            except Exception as error:  # whatever it is, the others wait for this rank
                failure = as_error(error, "sleep")
        raise_together([failure])
        if not self.groups.dropped:
            self.groups.drop()

    @property
    def asleep(self) -> bool:
        """Nothing is left to be given: the same on every rank, or else `sleep` goes on where it is not."""
        return self.memory.asleep and (self.groups is None or self.groups.dropped)

    def _give_memory(self) -> None:
        forget_last_tokens(self.model)
        self.memory.sleep()
        self._on_device = None

    def wake(self) -> None:
        """Take the device's memory back, with the weights of the last update."""
        self._hold(ACTOR)

    def update(self, samples: Sequence[Sample], rollout_id: int) -> UpdateStats:
        """Train on a rollout: log-probs of the reference and of the policy as it is, then the optimizer steps.

        samples: samples_per_rollout of them; steps take them in the order of their indices.
        Raises SamplesError before anything is computed, GradientError or OptimizerError at a step: the weights are then
        those of the step before, and the host's copy is that of the update before. After a first step that is the same,
        and another update may follow; after a later one the actor must resume.
        """
        self._check_not_saving()
        self._check_whole()
        clock = Stopwatch()
        with clock.part("pack"):
            ordered = self._checked(samples)
            steps = schedule(ordered, self.config)
        with clock.part("ref_logprobs"):
            ref = self._reference_logprobs(steps, rollout_id)
        with clock.part("old_logprobs"):
            self._hold(ACTOR)
            old = self._logprobs(steps) if self.config.needs_old_logprobs else _none_of(steps)
        with clock.part("steps"):
            advantages = self._advantages(ordered)
            done = [
                self.stepper.step(batches, StepInputs(advantages, *logprobs))
                for batches, *logprobs in zip(steps, old, ref, strict=True)
            ]
        with clock.part("backup"):
            self._copy_to_host()
        self._trained = rollout_id
        return UpdateStats(rollout_id, tuple(done), clock.seconds)

    def _checked(self, samples: Sequence[Sample]) -> list[Sample]:
        """In the order of the steps. Every rank has the same samples, so all raise or none."""
        needed = self.config.samples_per_rollout
        check_samples(samples, vocab_size=self.config.shape.vocab_size, at_least=needed)
        if len(samples) > needed:
            raise TrainerError(
                f"{len(samples)} samples, but the {self.config.steps_per_rollout} steps of a rollout take"
                f" {self.config.samples_per_step} each = {needed}: none may be left out silently"
            )
        if self._needs_rollout_logprobs and samples[0].rollout_logprobs is None:
            raise TrainerError("grpo.use_tis and grpo.use_rollout_logprobs need the engine's log-probs of every sample")
        return sorted(samples, key=lambda sample: sample.index)

    @property
    def _needs_rollout_logprobs(self) -> bool:
        return self.config.grpo.use_tis or self.config.grpo.use_rollout_logprobs

    def _advantages(self, samples: Sequence[Sample]) -> Tensor:
        """[samples] float32, on the device."""
        grpo = self.config.grpo
        return group_advantages(
            torch.tensor([sample.reward for sample in samples], dtype=torch.float64),
            torch.tensor([sample.group_index for sample in samples]),
            normalize=not grpo.disable_rewards_normalization,
            by_std=not grpo.disable_grpo_std_normalization,
        ).to(self.config.model.device)

    def _reference_logprobs(self, steps: Sequence[StepBatches], rollout_id: int) -> list[list[Tensor]]:
        """[step][micro-batch]; empty lists where the loss takes none from this rollout."""
        if not self.config.needs_reference or rollout_id % self.config.grpo.ref_logprob_interval:
            return _none_of(steps)
        self._hold(REFERENCE)
        return self._logprobs(steps)

    def _logprobs(self, steps: Sequence[StepBatches]) -> list[list[Tensor]]:
        """[step][micro-batch] log-probs of the trained tokens by the weights held; empty but on the last stage.

        One pass over the micro-batches of all steps: the pipeline fills and drains once.
        """
        found = self.passes.logprobs([batch for step in steps for batch in step.micro_batches])
        if not found:
            return _none_of(steps)
        remaining = iter(found)
        return [list(islice(remaining, len(step.micro_batches))) for step in steps]

    def _hold(self, name: str) -> None:
        """Have this copy of the weights on the device, and the memory for it."""
        if self.groups is not None and self.groups.dropped:
            self.groups.restore()
        if self.memory.asleep:
            self.memory.wake(name)
        elif self._on_device != name:
            self._on_device = None  # until they are there: what stops half way is neither
            self.weights.restore(name)
        self._on_device = name

    def _check_not_saving(self) -> None:
        if self._saving is not None:
            raise TrainerError(f"{self._saving.directory} is being written from what this changes: finish_save first")

    def _check_may_load(self) -> None:
        """Loading writes to the device, and to what a save reads."""
        self._check_not_saving()
        if self.memory.asleep:
            raise TrainerError("the actor sleeps, and there is no memory to load weights into: wake it first")

    def _check_whole(self) -> None:
        """The host's copy and the masters are of one step, or they may be neither saved nor trained on together."""
        if self._steps_in_copy is None:
            raise TrainerError("the actor has no weights, or not all of what it began to load: load or resume first")
        if self._steps_in_copy != self.optimizer.num_steps:
            raise TrainerError(
                f"the optimizer has done {self.optimizer.num_steps} optimizer steps, the host's copy of the weights"
                f" {self._steps_in_copy}: an update stopped between its steps; resume the last checkpoint"
            )

    def _load_weights(self, directory: Path) -> None:
        self._check_may_load()
        self._on_device = None
        # A checkpoint in bf16 may be trained in float32, never the other way round: that would round silently.
        widens = self.config.model.dtype == torch.float32
        load_reference(directory, self.model, self.config.shape, cast=widens)
        self._check_loaded()

    def _begin(self, learning_rate: LearningRate) -> None:
        """The model has the weights to train from, the optimizer their masters."""
        self.learning_rate = self.stepper.learning_rate = learning_rate
        self.optimizer.check_masters()
        self._on_device = ACTOR
        self._copy_to_host()

    def _copy_to_host(self) -> None:
        """The device has the actor's weights as of the last step; now the host has too."""
        self.weights.save(ACTOR)
        self._steps_in_copy = self.optimizer.num_steps

    def _check_loaded(self) -> None:
        """Raise on every rank if a weight of any rank was left as it was built."""
        mine = [f"rank {dist.get_rank()}: {name}" for name in unloaded(self.model)]
        if missing := [line for lines in everyones(mine) for line in lines]:
            raise TrainerError(
                f"{len(missing)} weights were not loaded, or loaded as NaN: {', '.join(missing[:MOST_NAMED])};"
                " `python -m r1hpc.checkpoint verify` tells whether the checkpoint has them"
            )


def _none_of(steps: Sequence[StepBatches]) -> list[list[Tensor]]:
    """No log-probs for any step."""
    return [[] for _ in steps]
