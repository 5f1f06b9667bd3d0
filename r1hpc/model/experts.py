"""The routed experts of a layer that a rank holds, as two grouped matrix products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.fusions.fused_bias_swiglu import weighted_bias_swiglu_impl
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import MLATransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn

from r1hpc.errors import R1hpcError
from r1hpc.model.grouped_linear import ALIGNMENT_BYTES, grouped_linear

Boxes = Callable[[str, Tensor, Any, Any], list[ShardedTensor]]


class ExpertSizeError(R1hpcError):
    """Experts of a width that the grouped matrix products cannot multiply."""


class GroupedExperts(MegatronModule):  # type: ignore[misc]
    """down(silu(gate(x)) * up(x) * probability) of each token by its expert; the same class on CPU and H100.

    Without Transformer Engine upstream runs one small product after another. Weights lie as the checkpoint has them:
    [E, 2I, H], gate above up, and [E, H, I], of this rank's E experts.
    """

    def __init__(
        self,
        num_local_experts: int,
        config: MLATransformerConfig,
        *,
        pg_collection: ProcessGroupCollection,
        name: str | None = None,
    ) -> None:
        super().__init__(config=config)
        hidden, width = config.hidden_size, config.moe_ffn_hidden_size
        _check_alignment(config.params_dtype, {"hidden_size": hidden, "moe_intermediate_size": width})
        self.num_local_experts = num_local_experts
        self.ep_group, self.expert_data_group = pg_collection.ep, pg_collection.expt_dp
        self.linear_fc1_weight = _weight(config, num_local_experts, 2 * width, hidden)
        self.linear_fc2_weight = _weight(config, num_local_experts, hidden, width)

    def forward(self, x: Tensor, tokens_per_expert: Tensor, probabilities: Tensor) -> tuple[Tensor, None]:
        """x: [T, H], rows in the order of their experts. tokens_per_expert: [E]. probabilities: [T] float32.

        Returns [T, H], and no bias. With T = 0 the weights still get gradients, of zeros: the ranks that share them
        reduce what every one of them has.
        """
        ends = tokens_per_expert.to(x.device).cumsum(0, dtype=torch.int32)
        gate_up = grouped_linear(x, self.linear_fc1_weight, ends)
        return grouped_linear(self._activate(gate_up, probabilities), self.linear_fc2_weight, ends), None

    def _activate(self, gate_up: Tensor, probabilities: Tensor) -> Tensor:
        weights = probabilities.unsqueeze(-1)
        if self.config.bias_activation_fusion and len(gate_up):
            fused: Tensor = weighted_bias_swiglu_impl(gate_up, None, weights)
            return fused
        gate, up = gate_up.chunk(2, dim=-1)
        return (nn.functional.silu(gate) * up * weights).to(gate_up.dtype)

    def backward_dw(self) -> None:
        """Megatron's MoE layer offers to delay weight gradients; here they are computed in the backward pass."""

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A factory for each weight: what it builds, of the weight or of optimizer state of its shape, are views of it.

        Keys and shapes are those of r1hpc.checkpoint.names: one tensor a layer, [experts, rows, columns].
        """
        assert not sharded_offsets, "layers of a stage are numbered in their keys"
        halves = {"linear_fc1": 2, "linear_fc2": 1}
        return {
            f"{prefix}{linear}_weight": ShardedTensorFactory(
                key=f"{prefix}experts.{linear}.weight",
                data=getattr(self, f"{linear}_weight"),
                build_fn=self._boxes(parts),
                merge_fn=lambda boxes, parts=parts: _joined(boxes, parts),
                replica_id=(0, 0, self.expert_data_group.rank()),
            )
            for linear, parts in halves.items()
        }

    def _boxes(self, halves: int) -> Boxes:
        """Cuts a tensor [E, rows, columns] into a box for each expert, or for each half of an expert's rows."""
        first = self.ep_group.rank() * self.num_local_experts
        experts = self.ep_group.size() * self.num_local_experts

        def build(key: str, whole: Tensor, replica_id: Any, flattened_range: Any) -> list[ShardedTensor]:
            assert flattened_range is None, "a range of a parameter is cut from its boxes by the trainer's checkpoint"
            return [
                ShardedTensor.from_rank_offsets(
                    key,
                    box,
                    (0, first + expert, experts),
                    (1, half, halves),
                    replica_id=replica_id,
                    prepend_axis_num=1,
                )
                for expert, rows in enumerate(whole.detach())
                for half, box in enumerate(rows.chunk(halves))
            ]

        return build


def _joined(boxes: Sequence[Tensor], halves: int) -> Tensor:
    """The tensor that `_boxes` cut up: the same memory where the boxes are still its views, in order, else a copy.

    Megatron loads into the views; a copy would take a second layer of experts.
    """
    first = boxes[0]
    shape = (len(boxes) // halves, halves * first.shape[0], first.shape[1])
    storage, begin = first.untyped_storage().data_ptr(), first.storage_offset()
    if storage and all(
        box.is_contiguous()
        and box.untyped_storage().data_ptr() == storage
        and box.storage_offset() == begin + number * first.numel()
        for number, box in enumerate(boxes)
    ):
        return first.as_strided(shape, (shape[1] * shape[2], shape[2], 1))
    return torch.cat(list(boxes)).view(shape)


def _weight(config: MLATransformerConfig, experts: int, rows: int, columns: int) -> nn.Parameter:
    weight = nn.Parameter(
        torch.empty(experts, rows, columns, dtype=config.params_dtype, device=torch.cuda.current_device())
    )
    # Reduced over the ranks that hold the same experts, not over all data-parallel ranks.
    weight.allreduce = False  # type: ignore[attr-defined]
    return weight


def _check_alignment(dtype: torch.dtype, widths: dict[str, int]) -> None:
    """Raise ExpertSizeError for widths whose rows do not begin at multiples of 16 bytes; on the CPU too."""
    multiple = ALIGNMENT_BYTES // dtype.itemsize
    wrong = [f"{name} {width}" for name, width in widths.items() if width % multiple]
    if wrong:
        raise ExpertSizeError(
            f"experts with {' and '.join(wrong)} in {str(dtype).removeprefix('torch.')}: must be a multiple of"
            f" {multiple} ({ALIGNMENT_BYTES} bytes / {dtype.itemsize}), or torch._grouped_mm refuses them; change the"
            " model's config.json"
        )
