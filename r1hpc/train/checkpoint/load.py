"""Resuming: weights, masters and moments of a checkpoint into this rank's memory, whatever layout saved it.

Each rank reads the boxes that it holds, straight into place. What the checkpoint cannot serve, of any rank, is said on
every rank before anything is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from r1hpc.checkpoint.chunk_reader import ChunkReader
from r1hpc.checkpoint.collective import as_error, everyones, raise_together, rank_of
from r1hpc.checkpoint.compare import Request, problems_of, unread
from r1hpc.checkpoint.load import load_weights
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.structure import file_problems
from r1hpc.checkpoint.torch_dist import TorchDist, open_torch_dist
from r1hpc.errors import CheckpointError, CheckpointProblems, R1hpcError
from r1hpc.model.build import sharded_state
from r1hpc.plan.model_shape import ModelShape
from r1hpc.train.checkpoint.pieces import HeldModel, Run
from r1hpc.train.checkpoint.random_states import (
    RandomStates,
    random_states_problem,
    restore_random_states,
    seed_random_states,
)
from r1hpc.train.checkpoint.ranks import current_layout, show_layout
from r1hpc.train.checkpoint.states import state_key, states_of
from r1hpc.train.checkpoint.trainer_state import RANDOM_STATES, TrainerState, read_trainer_state
from r1hpc.train.optimizer import ParamShard, TrainOptimizer


@dataclass(frozen=True)
class LoadedTrainer:
    """What was resumed."""

    state: TrainerState
    notices: tuple[str, ...]
    """What is not as it was, for the log."""


@dataclass(frozen=True)
class _Wanted:
    """A box that this rank reads."""

    key: str
    global_shape: tuple[int, ...]
    run: Run
    flat: Tensor
    """[run.box.volume] where its elements go."""

    @property
    def request(self) -> Request:
        return Request(self.key, self.flat.dtype, self.global_shape, self.run.box)


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that this rank can read."""

    tensors: TorchDist
    state: TrainerState
    states: RandomStates | None
    """This rank's, where it has the same place as when they were taken; null elsewhere."""


def load_trainer(
    directory: Path, model: HeldModel, optimizer: TrainOptimizer, seed: int, say: Callable[[str], None]
) -> LoadedTrainer:
    """Weights, masters, moments, number of steps and random states of the checkpoint in `directory`. Collective.

    seed: of the run; random states are drawn from it where the checkpoint was saved at another layout.
    Raises CheckpointProblems, the same on every rank: before anything is changed where the checkpoint is not whole or
    of another model; later where a file turns out broken while it is read, and then nothing may be used any more.
    """
    opened = _open(directory)
    wanted = [*_weights(model), *(want for shard in optimizer.shards() for want in _shard(model, shard))]
    _refuse(opened.tensors, wanted)
    _read(opened.tensors, wanted, say)
    optimizer.num_steps = opened.state.optimizer_steps
    optimizer.check_masters()
    return LoadedTrainer(opened.state, tuple(_resume_random(opened, seed)))


def load_reference(directory: Path, model: GPTModel, shape: ModelShape, *, cast: bool = False) -> None:
    """The weights of a torch_dist checkpoint alone, into a model (not wrapped) of this shape. Collective.

    directory: of the checkpoint, or one with a tracker (REF_LOAD). Prediction layers are left out, as training builds
    none. cast: weights may be of another floating-point dtype than the model's. Raises as load_weights.
    """
    with torch.no_grad():
        model.load_state_dict(load_weights(sharded_state(model), directory, shape, cast=cast))


def _open(directory: Path) -> _Opened:
    """Collective: raise on every rank what any rank meets."""
    opened, failure = None, None
    try:
        tensors = open_torch_dist(directory)
        state = read_trainer_state(tensors.directory)
        opened = _Opened(tensors, state, _states_of_this_rank(tensors.directory, state))
    except (R1hpcError, OSError) as error:
        failure = as_error(error, f"{directory}: cannot be opened")
    raise_together([failure])
    assert opened is not None
    return opened


def _states_of_this_rank(directory: Path, state: TrainerState) -> RandomStates | None:
    if state.layout != current_layout():
        return None
    file = directory / RANDOM_STATES
    try:
        states: list[RandomStates] = torch.load(file, weights_only=True)
        mine = states[rank_of()]
    except Exception as error:  # whatever a broken archive makes torch raise
        raise CheckpointError(
            f"{file}: holds no random states of {show_layout(state.layout)} ({error!r:.200})"
        ) from error
    if problem := random_states_problem(mine):
        raise CheckpointError(f"{file}: {problem}")
    return mine


def _weights(model: HeldModel) -> Iterator[_Wanted]:
    for held in model.tensors:
        flat = held.tensor.detach().view(-1)
        for run in held.runs(0, flat.numel()):
            yield _Wanted(run.key, run.global_shape, run, flat[run.begin : run.end])


def _shard(model: HeldModel, shard: ParamShard) -> Iterator[_Wanted]:
    for run in model.parameters[shard.name].runs(shard.begin, shard.end):
        for state, values in states_of(shard).items():
            flat = values[run.begin - shard.begin : run.end - shard.begin]
            yield _Wanted(state_key(state, run.key), run.global_shape, run, flat)


def _refuse(checkpoint: TorchDist, wanted: list[_Wanted]) -> None:
    """Raise on every rank the problems that any rank has with the checkpoint. Collective."""
    requests = [want.request for want in wanted]
    states = {request.key for request in requests if request.key.startswith("optimizer.")}
    mine = [f"{checkpoint.directory}: {problem}" for problem in problems_of(requests, checkpoint.tensors, (), False)]
    if rank_of() == 0:
        mine += file_problems(checkpoint, {})
    requested = {key for keys in everyones({request.key for request in requests} - states) for key in keys}
    mine += [f"{checkpoint.directory}: {problem}" for problem in unread(requested, checkpoint.tensors)]
    raise_together([CheckpointProblems(mine)] if mine else [])


def _read(checkpoint: TorchDist, wanted: list[_Wanted], say: Callable[[str], None]) -> None:
    """Read every box into its place; what goes wrong on one rank is raised on all. Collective."""
    failure = None
    progress = Progress("loading", sum(want.flat.nbytes for want in wanted), say)
    done = 0
    reader = ChunkReader(checkpoint)
    try:
        for want in wanted:
            _read_one(reader, want)
            done += want.flat.nbytes
            progress.update(done)
        progress.finish()
    except CheckpointError as error:
        failure = error
    finally:
        reader.close()
    raise_together([failure])


def _read_one(reader: ChunkReader, want: _Wanted) -> None:
    sizes = want.run.box.sizes
    # What numpy has seen can never be resized, and Megatron's buffers are, to sleep: on a CPU too they get a copy.
    if want.flat.is_cpu and not want.flat.untyped_storage().resizable():
        reader.read_box(want.key, want.run.box, want.flat.view(sizes))
    else:
        want.flat.copy_(reader.read_box(want.key, want.run.box).view(-1))


def _resume_random(opened: _Opened, seed: int) -> Iterator[str]:
    """Put the random states back, or draw them anew with a notice."""
    if opened.states is not None:
        restore_random_states(opened.states)
        return
    state = opened.state
    seed_random_states(seed, state.iteration + 1, parallel_state.get_pipeline_model_parallel_rank())
    yield (
        f"random states were drawn anew from seed {seed} and iteration {state.iteration + 1}: the checkpoint was saved"
        f" with {show_layout(state.layout)}, this run has {show_layout(current_layout())}"
    )
