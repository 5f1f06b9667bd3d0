"""What one rank does with a rollout: the micro-batches of its optimizer steps, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron.core import parallel_state

from r1hpc.train.collate import collate, padded_lengths
from r1hpc.train.flops import sequence_cost
from r1hpc.train.microbatch import MicroBatch
from r1hpc.train.packing import pack
from r1hpc.train.settings import TrainerConfig
from r1hpc.types import Sample

GPU_TILE = 128
"""Rows of a tile of a GPU's matrix product: local tokens are padded to whole tiles for each tensor rank."""

GPU_CHUNK = 64
"""Chunks of a sequence are multiples of this: cuDNN takes 0.1 s to plan attention for a length that it has not seen
(H200), so lengths must repeat. At CP4 it pads 256 tokens a sample on average, 2.5 % of 10,000."""


@dataclass(frozen=True)
class StepBatches:
    """One optimizer step of this rank."""

    micro_batches: tuple[MicroBatch, ...]
    num_tokens: int
    """Raw, of all samples of the step on all ranks."""


def schedule(samples: Sequence[Sample], config: TrainerConfig) -> list[StepBatches]:
    """The steps of a rollout for this rank; step s takes samples [s * samples_per_step, (s + 1) * samples_per_step).

    Every rank comes to the same packing by itself. Raises PackingError.
    """
    size = config.samples_per_step
    steps = []
    for begin in range(0, config.samples_per_rollout, size):
        taken = samples[begin : begin + size]
        places_here = _places(packed_lengths(taken, config), config)
        micro_batches = tuple(
            collate_here(samples, [begin + place for place in places], config) for places in places_here
        )
        steps.append(StepBatches(micro_batches, sum(len(sample.tokens) for sample in taken)))
    return steps


def packed_lengths(samples: Sequence[Sample], config: TrainerConfig) -> list[int]:
    """What each sample takes of a micro-batch's capacity: its tokens; on a GPU with the padding that coarse chunks add.

    Short samples would otherwise exceed the memory that max_tokens_per_gpu is meant to bound, 8 times at 60 tokens and
    CP4. Without it the capacity is in raw tokens, as in the recipe.
    """
    if chunk_of(config) == 1:
        return [len(sample.tokens) for sample in samples]
    cp_size = config.perf.context_parallel_size
    return [padded_lengths([sample], cp_size, chunk=chunk_of(config))[0] for sample in samples]


def chunk_of(config: TrainerConfig) -> int:
    """Tokens of which the chunks of a sequence are multiples."""
    return GPU_CHUNK if config.model.device == "cuda" else 1


def collate_here(samples: Sequence[Sample], places: Sequence[int], config: TrainerConfig) -> MicroBatch:
    """This rank's share of the micro-batch of these samples."""
    tensor_ranks = parallel_state.get_tensor_model_parallel_world_size()
    tile = GPU_TILE if config.model.device == "cuda" else 1
    return collate(
        samples,
        places,
        cp_rank=parallel_state.get_context_parallel_rank(),
        cp_size=parallel_state.get_context_parallel_world_size(),
        multiple=tensor_ranks * tile,
        device=config.model.device,
        chunk=chunk_of(config),
    )


def _places(lengths: Sequence[int], config: TrainerConfig) -> Sequence[Sequence[int]]:
    """Of the samples of a step, those of each micro-batch of this data-parallel rank."""
    perf = config.perf
    capacity = None
    if perf.use_dynamic_batch_size:
        assert perf.max_tokens_per_gpu is not None, "the configuration refuses dynamic batches without a size"
        capacity = perf.max_tokens_per_gpu * perf.context_parallel_size
    packing = pack(
        lengths,
        capacity=capacity,
        ranks=parallel_state.get_data_parallel_world_size(),
        cost=sequence_cost(config.shape),
        balance=config.balance_data,
    )
    return packing[parallel_state.get_data_parallel_rank()]
