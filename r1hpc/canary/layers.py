"""How few layers of a model still show every kind of work to every GPU. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.model_shape import ModelShape


@dataclass(frozen=True)
class LayerCut:
    """The first layers of a model, and how pipeline stages share them."""

    num_layers: int
    first: int | None
    """Layers of the first stage, and of the last: null divides evenly."""
    last: int | None
    mtp_layers: int
    """Multi-token-prediction layers kept after them."""

    def sources(self, shape: ModelShape) -> dict[int, int]:
        """Number of each kept layer in the cut, and in the model: prediction layers move up to the last of the rest."""
        main = {layer: layer for layer in range(self.num_layers)}
        return main | {self.num_layers + index: shape.num_layers + index for index in range(self.mtp_layers)}


def cut_layers(config: Config, shape: ModelShape) -> LayerCut:
    """All dense layers, then one layer with experts a stage: tokens travel to experts on every GPU, as in the run.

    R1 on 4 stages: 3 dense + 4 with experts = 7 layers, as 4 + 1 + 1 + 1. A model with no more layers than that stays
    whole.
    """
    perf, dense = config.perf, shape.num_dense_layers
    stages = perf.pipeline_model_parallel_size
    # A draft model is loaded only where the engines predict with it.
    mtp = shape.num_mtp_layers if config.sglang.passed_through.get("speculative_algorithm") else 0
    if dense + stages >= shape.num_layers:
        first, last = perf.decoder_first_pipeline_num_layers, perf.decoder_last_pipeline_num_layers
        return LayerCut(shape.num_layers, first, last, mtp)
    return LayerCut(dense + stages, dense + 1 if dense and stages > 1 else None, None, mtp)
