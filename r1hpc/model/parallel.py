"""How the model is split over processes: the layout, its arithmetic, and Megatron's process groups for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from r1hpc.config.training import PerfConfig
from r1hpc.errors import ProblemsError
from r1hpc.plan.layers import split_layers

DEFAULT_SEED = 1234


class LayoutError(ProblemsError):
    """A layout that cannot be built; each problem with its arithmetic and the key to change."""

    heading = "layout problem"


@dataclass(frozen=True)
class Layout:
    """The sizes of the two grids that processes form. Data parallelism is what the world leaves over.

    rank = tp + TP * (cp + CP * (dp + DP * pp)) = ep + EP * (edp + EDP * pp), Megatron's order tp-cp-ep-dp-pp. Each
    expert is whole on its rank (expert tensor parallelism 1); with tp > 1 activations are split along the sequence too.
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    first_layers: int | None = None
    """Layers of the first pipeline stage; null: an equal share."""
    last_layers: int | None = None

    @classmethod
    def of(cls, perf: PerfConfig) -> Layout:
        """The layout that the `perf` section asks for. Raises LayoutError for what the model's modules cannot do."""
        problems = []
        if perf.expert_tensor_parallel_size != 1:
            problems.append(
                f"perf.expert_tensor_parallel_size is {perf.expert_tensor_parallel_size}; it must be 1: the grouped"
                " matrix products take whole experts; raise perf.expert_model_parallel_size instead"
            )
        if perf.tensor_model_parallel_size > 1 and not perf.sequence_parallel:
            problems.append(
                "perf.sequence_parallel is false with perf.tensor_model_parallel_size"
                f" {perf.tensor_model_parallel_size}; it must be true: each token must reach its experts from one"
                " tensor rank only"
            )
        if problems:
            raise LayoutError(problems)
        return cls(
            tp=perf.tensor_model_parallel_size,
            pp=perf.pipeline_model_parallel_size,
            cp=perf.context_parallel_size,
            ep=perf.expert_model_parallel_size,
            first_layers=perf.decoder_first_pipeline_num_layers,
            last_layers=perf.decoder_last_pipeline_num_layers,
        )

    @property
    def sequence_parallel(self) -> bool:
        """Whether tensor ranks share activations along the sequence."""
        return self.tp > 1

    @property
    def model_size(self) -> int:
        """Processes that hold the dense weights once: tp * cp * pp."""
        return self.tp * self.cp * self.pp

    def layers_of_stages(self, num_layers: int) -> tuple[int, ...]:
        """Layers of each pipeline stage. Raises LayoutError with the arithmetic when they do not divide."""
        try:
            return split_layers(num_layers, self.pp, self.first_layers, self.last_layers)
        except ValueError as error:
            raise LayoutError([f"perf.pipeline_model_parallel_size is {self.pp}: {error}"]) from error

    def data_parallel_sizes(self, world_size: int) -> tuple[int, int]:
        """Copies of the dense weights, and of the experts. Raises LayoutError where they do not divide the world."""
        problems = [
            f"{names} = {arithmetic} = {size} does not divide the {world_size} processes of the world"
            for names, arithmetic, size in self._grids()
            if world_size % size
        ]
        if problems:
            raise LayoutError(problems)
        return world_size // self.model_size, world_size // (self.ep * self.pp)

    def initialize(self, seed: int = DEFAULT_SEED) -> None:
        """Make Megatron's process groups and seed its trackers of random state. Collective; torch.distributed is up.

        seed: of the draws that differ between ranks; nothing is drawn with dropout 0.
        """
        self.data_parallel_sizes(dist.get_world_size())
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            context_parallel_size=self.cp,
            expert_model_parallel_size=self.ep,
            expert_tensor_parallel_size=1,
            # Only Megatron's own optimizer checkpoints use them; a gloo group beside each NCCL one costs sockets.
            create_gloo_process_groups=False,
        )
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

    def _grids(self) -> Sequence[tuple[str, str, int]]:
        return (
            ("tp * cp * pp", f"{self.tp} * {self.cp} * {self.pp}", self.model_size),
            ("ep * pp", f"{self.ep} * {self.pp}", self.ep * self.pp),
        )
