"""The optimizer of a training rank: Megatron shards parameters and gradients, HostAdam updates what this rank owns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import DistributedOptimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.clip_grads import get_grad_norm_fp32
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from r1hpc.checkpoint.collective import everyones
from r1hpc.config.training import OptimizerConfig
from r1hpc.errors import R1hpcError
from r1hpc.train.host_adam import PIECE_ELEMENTS, HostAdam


class OptimizerError(R1hpcError):
    """A step cannot be taken with what there is; the same on every rank."""


@dataclass(frozen=True)
class StepOutcome:
    """What an optimizer step did."""

    grad_norm: float
    """Of the gradients of the whole model, before clipping."""
    clip_coefficient: float
    """What the gradients were multiplied by: 1 where they were not clipped."""


@dataclass(frozen=True)
class ParamShard:
    """What this rank owns of one parameter: the values [begin, end) of it, flattened."""

    name: str
    """Of model.named_parameters(), the model not wrapped."""
    param: nn.Parameter
    begin: int
    end: int
    master: Tensor
    """[end - begin] float32, as the moments."""
    exp_avg: Tensor
    exp_avg_sq: Tensor

    @property
    def weights(self) -> Tensor:
        """[end - begin] view of the parameter."""
        return self.param.detach().view(-1)[self.begin : self.end]


def wrap(model: nn.Module) -> DistributedDataParallel:
    """The model with its parameters and float32 gradients in Megatron's buffers; gradients are summed, never scaled.

    What they are divided by is known only once all ranks have counted: finalize_model_grads does it, given the count.
    Nothing overlaps: gradients are reduced when finalized, so that they can be checked before.
    """
    config: Any = model.config
    assert config.calculate_per_token_loss, "without it Megatron divides gradients by the data-parallel size"
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=False,
        overlap_param_gather=False,
        average_in_collective=False,
        check_for_nan_in_grad=False,  # gradients.py names the parameter; this would only stop one rank
    )
    layout = DistributedOptimizer.compute_full_param_layout(
        [param for param in model.parameters() if param.requires_grad],
        bucket_size=None,
        data_parallel_world_size=parallel_state.get_data_parallel_group(with_context_parallel=True).size(),
        ddp_config=ddp,
        expert_data_parallel_world_size=parallel_state.get_expert_data_parallel_group().size(),
    )
    return DistributedDataParallel(config=config, ddp_config=ddp, module=model, full_param_layout=layout)


def build_optimizer(
    ddp_model: DistributedDataParallel, config: OptimizerConfig, offload: bool, piece_elements: int = PIECE_ELEMENTS
) -> TrainOptimizer:
    """The optimizer of this rank's part of a model that `wrap` made. Collective.

    offload: masters and moments in host memory, else on the parameters' device.
    Masters are the parameters as they are now; after loading other weights call `masters_from_parameters`.
    """
    megatron = _megatron_config(ddp_model, config)
    groups = ProcessGroupCollection.setup_process_groups_for_optimizer(None, [ddp_model], use_gloo_process_groups=False)
    # Two on every rank; that of the experts owns nothing on a stage without any.
    parts = [
        _sharded(
            HostAdam(
                _param_groups(ddp_model, expert, config.weight_decay),
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_eps,
                offload=offload,
                overlap=config.overlap_cpu_optimizer_d2h_h2d,
                piece_elements=piece_elements,
            ),
            megatron,
            ddp_model,
            buffers=ddp_model.expert_parallel_buffers if expert else ddp_model.buffers,
            data_group=groups["intra_expt_dp_group" if expert else "intra_dp_cp_group"],
            model_group=groups["expt_tp_pp_group" if expert else "mp_group"],
        )
        for expert in (False, True)
    ]
    return TrainOptimizer(ddp_model, parts, config.clip_grad, groups["intra_dist_opt_group"])


class TrainOptimizer:
    """Steps of the whole model, every rank its shards. Every method but those that say so is collective."""

    def __init__(
        self,
        ddp_model: DistributedDataParallel,
        parts: Sequence[DistributedOptimizer],
        clip_grad: float,
        world: dist.ProcessGroup,
    ) -> None:
        """parts: of the dense and of the expert parameters. clip_grad: 0 is off. world: all that share the norm."""
        self._ddp_model = ddp_model
        self._parts = parts
        self._adams: list[HostAdam] = [part.optimizer for part in parts]
        self._clip_grad = clip_grad
        self._world = world

    @property
    def num_steps(self) -> int:
        """Steps done, of the run and not only of this process."""
        (steps,) = {group["step"] for adam in self._adams for group in adam.param_groups}
        return int(steps)

    @num_steps.setter
    def num_steps(self, steps: int) -> None:
        """For who loads a checkpoint. Not collective."""
        for adam in self._adams:
            for group in adam.param_groups:
                group["step"] = steps

    @property
    def state_bytes(self) -> int:
        """Of the masters, moments and staging buffers of this rank."""
        return sum(adam.state_bytes for adam in self._adams)

    def zero_grad(self) -> None:
        """Set all gradients to zero, before the first micro-batch of a step. Not collective."""
        self._ddp_model.zero_grad_buffer()
        for part in self._parts:
            part.zero_grad()

    @torch.no_grad()
    def step(self, lr: float) -> StepOutcome:
        """Clip the finalized gradients by their global norm, step, and give every rank all the new parameters.

        Raises OptimizerError, on every rank and before anything is changed, if the norm is not finite.
        """
        for part in self._parts:
            part.prepare_grads()
        norm = self._grad_norm()
        coefficient = self._clip(norm)
        for adam in self._adams:
            for group in adam.param_groups:
                group["lr"] = lr
            adam.step()
        # Not Megatron's own step, which gathers all parameters once for the dense and once more for the experts.
        self._ddp_model.start_param_sync(force_sync=True)
        return StepOutcome(grad_norm=norm, clip_coefficient=coefficient)

    def shards(self) -> Iterator[ParamShard]:
        """What this rank owns, in the order of model.named_parameters(). Not collective."""
        owned = {
            model_param: shard
            for part in self._parts
            for model_param, shard in zip(_model_params(part), part.optimizer.shards, strict=True)
        }
        for name, param in self._ddp_model.module.named_parameters():
            if param in owned:
                shard = owned[param]
                # Both are views of Megatron's buffer, in which a parameter lies contiguously.
                begin = shard.param.storage_offset() - param.storage_offset()
                end = begin + shard.param.numel()
                yield ParamShard(name, param, begin, end, shard.master, shard.exp_avg, shard.exp_avg_sq)

    def masters_from_parameters(self) -> None:
        """Set the masters to the parameters' values: due after weights were loaded without their masters.

        Left undone, the first step would write the weights of before back (semantics A6). Not collective.
        """
        for adam in self._adams:
            adam.masters_from_parameters()

    def restart(self) -> None:
        """Be as if built around the parameters as they are: masters equal to them, moments zero, no step done.

        Not collective.
        """
        self.masters_from_parameters()
        for adam in self._adams:
            for shard in adam.shards:
                shard.exp_avg.zero_()
                shard.exp_avg_sq.zero_()
        self.num_steps = 0

    def check_masters(self) -> None:
        """Raise OptimizerError, on every rank, unless each master rounded to its parameter's dtype is the parameter."""
        mine = [
            f"rank {dist.get_rank()}: {name}: {count} of {size} values" for name, count, size in self._wrong_masters()
        ]
        wrong = [line for lines in everyones(mine) for line in lines]
        if wrong:
            raise OptimizerError(
                f"float32 masters differ from the parameters in {len(wrong)} shards; a step would write the masters'"
                " values into the parameters. Load masters and weights of one checkpoint, or take the masters from the"
                " parameters (masters_from_parameters). First of them:\n"
                + "\n".join(f"  {line}" for line in wrong[:20])
            )

    def close(self) -> None:
        """Let go of masters and moments. Not collective."""
        for adam in self._adams:
            adam.close()

    def _wrong_masters(self) -> Iterator[tuple[str, int, int]]:
        """Name, number of wrong values, and size of each shard with any."""
        names = {param: name for name, param in self._ddp_model.module.named_parameters()}
        for part in self._parts:
            for param, shard in zip(_model_params(part), part.optimizer.shards, strict=True):
                count = part.optimizer.differing(shard)
                if count:
                    yield names[param], count, shard.master.numel()

    def _grad_norm(self) -> float:
        grads = [grad for part in self._parts for grad in part.get_grads_for_grad_norm()]
        norm = float(get_grad_norm_fp32(grads, grad_stats_parallel_group=self._world))
        if not math.isfinite(norm):
            raise OptimizerError(
                f"the global gradient norm is {norm}, though each rank's gradients were finite: their sum or its square"
                " exceeds float32. Nothing was changed; look for a loss that is too large, or lower the learning rate."
            )
        return norm

    def _clip(self, norm: float) -> float:
        """Scale the gradients as Megatron and torch do; return by what."""
        coefficient = self._clip_grad / (norm + 1e-6) if self._clip_grad else 1.0
        if coefficient >= 1.0:
            return 1.0
        grads = [param.decoupled_grad for part in self._parts for param in part.get_parameters()]
        if grads:
            torch._foreach_mul_(grads, coefficient)
        return coefficient


def _megatron_config(ddp_model: DistributedDataParallel, config: OptimizerConfig) -> MegatronOptimizerConfig:
    """Precision-aware: the inner optimizer owns the masters and is given float32 gradients beside the parameters.

    Megatron asks for Transformer Engine's Adam in that mode unless optimizer_cpu_offload is set, so that is always set:
    it decides nothing else here, as the inner optimizer is ours, and where the state lies is HostAdam's affair.
    """
    return MegatronOptimizerConfig(
        optimizer="adam",
        bf16=any(param.dtype == torch.bfloat16 for param in ddp_model.parameters()),
        use_distributed_optimizer=True,
        use_precision_aware_optimizer=True,
        optimizer_cpu_offload=True,
        weight_decay=config.weight_decay,
        clip_grad=config.clip_grad,
    )


def _param_groups(ddp_model: DistributedDataParallel, expert: bool, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, the same on every rank, empty or not: without weight decay what is 1-D (norms), as Megatron does."""
    params = [
        param
        for param in ddp_model.parameters()
        if param.requires_grad and expert == (not getattr(param, "allreduce", True))
    ]
    return [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim <= 1], "weight_decay": 0.0},
    ]


def _sharded(
    adam: HostAdam,
    config: MegatronOptimizerConfig,
    ddp_model: DistributedDataParallel,
    buffers: list[Any],
    data_group: dist.ProcessGroup,
    model_group: dist.ProcessGroup,
) -> DistributedOptimizer:
    """Megatron's optimizer around ours, which now knows its shards and has its state."""
    part = DistributedOptimizer(
        adam,
        config,
        grad_scaler=None,
        init_state_fn=HostAdam.allocate,
        model_chunks=[ddp_model],
        per_model_buffers={0: buffers},
        data_parallel_group=data_group,
        data_parallel_group_gloo=None,
        data_parallel_group_idx=model_group.rank(),
        distributed_optimizer_instance_id=0,
    )
    # Which gradients are copies of another tensor rank's, and do not count in the norm, is asked of these.
    part.tp_group = parallel_state.get_tensor_model_parallel_group()
    part.expert_tp_group = parallel_state.get_expert_tensor_parallel_group()
    adam.allocate()
    return part


def _model_params(part: DistributedOptimizer) -> Iterator[nn.Parameter]:
    """The parameters that the shards of the inner optimizer are parts of, in their order."""
    for float32, float16 in zip(part.model_fp32_groups, part.model_float16_groups, strict=True):
        yield from float32
        yield from float16
