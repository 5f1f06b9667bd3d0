"""How tokens travel to their experts: DeepEP by Megatron's flex dispatcher where it is installed, else all-to-all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron.core.transformer.moe import fused_a2a
from torch import Tensor, nn

from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings


@dataclass(frozen=True)
class Dispatcher:
    """What Megatron is told, and what people are."""

    kind: Literal["alltoall", "flex"]
    notice: str | None = None
    """Why it is not the one asked for; null where it is."""


def choose_dispatcher(settings: TrainSettings, layout: Layout, deepep: bool) -> Dispatcher:
    """The dispatcher for these settings. deepep: whether `deepep_installed()`.

    Raises ValueError for one that the model cannot be trained with.
    """
    if settings.dispatcher == "allgather":
        raise ValueError(
            "megatron.moe_token_dispatcher_type is allgather, which cannot take packed sequences: their lengths vary;"
            " write alltoall, or flex"
        )
    if settings.dispatcher == "alltoall":
        return Dispatcher("alltoall")
    if settings.flex_backend == "hybridep":
        raise ValueError(
            "megatron.moe_flex_dispatcher_backend is hybridep, which needs a package that nothing here has run with;"
            " write deepep"
        )
    reason = _against_deepep(settings, layout, deepep)
    if reason is None:
        return Dispatcher("flex")
    return Dispatcher("alltoall", f"megatron.moe_token_dispatcher_type is flex, but {reason}: alltoall is used")


def deepep_installed() -> bool:
    """Whether Megatron found DeepEP: a `deep_ep` with its Buffer, not just any package of that name."""
    installed: bool = fused_a2a.HAVE_DEEP_EP
    return installed


def forget_last_tokens(model: nn.Module) -> None:
    """Let go of what Megatron's dispatchers keep of the last micro-batch: with its graph, a layer's inputs each."""
    for module in model.modules():
        dispatcher = getattr(module, "token_dispatcher", None)
        # With DeepEP it is a part of the dispatcher that keeps them.
        for keeper in (dispatcher, getattr(dispatcher, "_comm_manager", None)):
            for name, value in vars(keeper).items() if keeper is not None else ():
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    setattr(keeper, name, None)


def _against_deepep(settings: TrainSettings, layout: Layout, deepep: bool) -> str | None:
    if settings.device == "cpu":
        return "DeepEP's kernels are for GPUs and this is a CPU"
    if not deepep:
        return "deep_ep cannot be imported (it comes with sgl-deep-ep, or from the site's own build)"
    if layout.tp * layout.ep == 1:
        return "DeepEP needs more than one rank to send to, and tp * ep = 1 * 1 = 1"
    return None
