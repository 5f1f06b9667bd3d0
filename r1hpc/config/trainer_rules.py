"""Rules of what the trainer can carry out with its own layers, loss and optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from r1hpc.config.portable import AUXILIARY_LOSS
from r1hpc.config.rule import Broken, Rule
from r1hpc.config.schema import Config


def _experts(config: Config) -> Iterator[Broken]:
    if config.perf.expert_tensor_parallel_size != 1:
        rule = "must be 1: an expert's matrices stay whole on their rank; raise expert_model_parallel_size instead"
        yield Broken("perf.expert_tensor_parallel_size", rule)


def _recompute(config: Config) -> Iterator[Broken]:
    perf = config.perf
    if perf.recompute_granularity == "full":
        for name in ("recompute_method", "recompute_num_layers"):
            if getattr(perf, name) is None:
                yield Broken("perf.recompute_granularity", f"full also needs {name}")
        return
    for name in ("recompute_method", "recompute_num_layers"):
        if getattr(perf, name) is not None:
            yield Broken(f"perf.{name}", "only with recompute_granularity: full; leave it out")


def _recompute_modules(config: Config) -> Iterator[Broken]:
    given = "recompute_modules" in config.megatron.passed_through
    selective = config.perf.recompute_granularity == "selective"
    if selective and not given:
        rule = (
            "selective also needs megatron.recompute_modules: attention never keeps its scores, so there is no default"
        )
        yield Broken("perf.recompute_granularity", rule)
    if given and not selective:
        yield Broken("megatron.recompute_modules", "only with perf.recompute_granularity: selective; leave it out")


def _pipeline(config: Config) -> Iterator[Broken]:
    if config.megatron.passed_through.get("batch_p2p_comm") is False:
        rule = "must be true: without it two stages would exchange through the group of all ranks; leave it out"
        yield Broken("megatron.batch_p2p_comm", rule)


def _optimizer(config: Config) -> Iterator[Broken]:
    optimizer = config.optimizer
    if optimizer.optimizer_cpu_offload and not optimizer.use_precision_aware_optimizer:
        rule = "needs use_precision_aware_optimizer: true; without it the first step writes pre-load weights back"
        yield Broken("optimizer.optimizer_cpu_offload", rule)
    if optimizer.overlap_cpu_optimizer_d2h_h2d and not optimizer.optimizer_cpu_offload:
        yield Broken("optimizer.overlap_cpu_optimizer_d2h_h2d", "only with optimizer_cpu_offload: true; leave it out")
    if optimizer.min_lr > optimizer.lr:
        yield Broken("optimizer.min_lr", f"must be at most lr({optimizer.lr})")


def _dispatcher(config: Config) -> Iterator[Broken]:
    megatron = config.megatron
    flex = megatron.moe_token_dispatcher_type == "flex"
    if flex and megatron.moe_flex_dispatcher_backend is None:
        yield Broken("megatron.moe_token_dispatcher_type", "flex needs moe_flex_dispatcher_backend: deepep")
    if not flex and megatron.moe_flex_dispatcher_backend is not None:
        yield Broken("megatron.moe_flex_dispatcher_backend", "only with moe_token_dispatcher_type: flex")
    if megatron.moe_token_dispatcher_type == "allgather":
        rule = "cannot carry packed sequences, whose lengths vary; write alltoall or flex"
        yield Broken("megatron.moe_token_dispatcher_type", rule)
    if megatron.moe_flex_dispatcher_backend == "hybridep":
        yield Broken("megatron.moe_flex_dispatcher_backend", "never ran with these layers; write deepep")


def _numerics(config: Config) -> Iterator[Broken]:
    megatron = config.megatron
    for name in ("attention_dropout", "hidden_dropout"):
        if getattr(megatron, name) > 0:
            rule = "must be 0: a policy trained with dropout is another one than the engine samples from"
            yield Broken(f"megatron.{name}", rule)
    if not megatron.accumulate_allreduce_grads_in_fp32:
        rule = "must be true: gradients are always summed over micro-batches and ranks in float32"
        yield Broken("megatron.accumulate_allreduce_grads_in_fp32", rule)
    if not megatron.attention_softmax_in_fp32:
        yield Broken("megatron.attention_softmax_in_fp32", "must be true: attention computes no other softmax")
    if megatron.moe_aux_loss_coeff > 0:
        yield Broken("megatron.moe_aux_loss_coeff", f"must be 0: {AUXILIARY_LOSS}")


def _sequence(config: Config) -> Iterator[Broken]:
    perf = config.perf
    tp = perf.tensor_model_parallel_size
    if tp > 1 and not perf.sequence_parallel:
        rule = f"must be true with tensor_model_parallel_size({tp}): Megatron's experts need it, and it is always done"
        yield Broken("perf.sequence_parallel", rule)


TRAINER_RULES: Final = (
    Rule(("perf",), _sequence),
    Rule(("perf",), _experts),
    Rule(("perf",), _recompute),
    Rule(("perf", "megatron"), _recompute_modules),
    Rule(("megatron",), _pipeline),
    Rule(("optimizer",), _optimizer),
    Rule(("megatron",), _dispatcher),
    Rule(("megatron",), _numerics),
)
