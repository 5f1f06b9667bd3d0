"""Which layers a pipeline stage holds, and the parameters of one of its GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.plan.parameters import ModelModules
from r1hpc.plan.topology import Topology


def split_layers(num_layers: int, stages: int, first: int | None, last: int | None) -> tuple[int, ...]:
    """Layers of each stage: `first` and `last` where given, the rest divided evenly.

    Raises ValueError with the arithmetic when they do not divide. Megatron: decoder_{first,last}_pipeline_num_layers.
    """
    if stages == 1:
        if first not in (None, num_layers) or last not in (None, num_layers):
            raise ValueError(f"one stage holds all {num_layers} layers; leave the first and last counts out")
        return (num_layers,)
    fixed = (first or 0) + (last or 0)
    middle = stages - (first is not None) - (last is not None)
    rest = num_layers - fixed
    given = "".join(f" - {name}({count})" for name, count in (("first", first), ("last", last)) if count)
    left = f"{given} = {rest}" if given else ""
    arithmetic = f"{num_layers} layers{left} cannot be shared evenly by {middle} {'other ' if given else ''}stages"
    if rest < middle or (middle == 0 and rest != 0) or (middle and rest % middle):
        raise ValueError(f"{arithmetic}{_nearest_last(num_layers, stages, first)}")
    counts = [rest // middle] * middle if middle else []
    return (*([] if first is None else [first]), *counts, *([] if last is None else [last]))


def dense_layers_in(first: int, count: int, num_dense_layers: int) -> int:
    """How many of `count` layers from `first` on are dense, when the model's first `num_dense_layers` are."""
    return max(0, min(first + count, num_dense_layers) - first)


def _nearest_last(num_layers: int, stages: int, first: int | None) -> str:
    """The counts of a last stage, close to an even share, with which the split works."""
    middle = stages - 1 - (first is not None)
    rest = num_layers - (first or 0)
    if middle < 1 or rest <= middle:
        return ""
    even = rest // (middle + 1)
    fitting = [last for last in range(1, rest - middle + 1) if (rest - last) % middle == 0]
    nearest = sorted(sorted(fitting, key=lambda last: abs(last - even))[:2])
    return f"; a last stage of {' or '.join(map(str, nearest))} layers would" if nearest else ""


@dataclass(frozen=True)
class Stage:
    """One pipeline stage; parameters are those of one of its GPUs."""

    index: int
    first_layer: int
    num_layers: int
    num_dense_layers: int
    dense_parameters: int
    """All but routed experts: attention, norms, routers, shared experts, embedding, head."""
    expert_parameters: int
    """Routed experts."""

    @property
    def num_moe_layers(self) -> int:
        """Its layers with experts."""
        return self.num_layers - self.num_dense_layers

    @property
    def parameters(self) -> int:
        """Parameters of one GPU."""
        return self.dense_parameters + self.expert_parameters


def make_stages(modules: ModelModules, topology: Topology, layers: tuple[int, ...]) -> tuple[Stage, ...]:
    """The stages of a layer split, first to last."""
    firsts = [sum(layers[:index]) for index in range(len(layers))]
    return tuple(
        _stage(modules, topology, index, first, count)
        for index, (first, count) in enumerate(zip(firsts, layers, strict=True))
    )


def _stage(modules: ModelModules, topology: Topology, index: int, first: int, count: int) -> Stage:
    dense_layers = dense_layers_in(first, count, modules.num_dense_layers)
    moe_layers = count - dense_layers
    held = [
        (modules.attention, count),
        (modules.layer_norms, count),
        (modules.dense_mlp, dense_layers),
        (modules.router, moe_layers),
        (modules.shared, moe_layers),
        (modules.embedding, index == 0),
        (modules.head, index == topology.pp - 1),
        (modules.final_norm, index == topology.pp - 1),
    ]
    experts = modules.num_experts // topology.ep * modules.expert.parameters // topology.etp
    return Stage(
        index=index,
        first_layer=first,
        num_layers=count,
        num_dense_layers=dense_layers,
        dense_parameters=sum(module.parameters_per_rank(topology.tp) * copies for module, copies in held),
        expert_parameters=moe_layers * experts,
    )
