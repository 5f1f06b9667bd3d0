"""AdamW with float32 masters and moments in one arena, in host memory or on the parameters' device.

The one inner optimizer of training, on CPU and GPU, for float32 and bfloat16 parameters. Megatron's distributed
optimizer decides which part of which parameter this rank owns, and hands each part its float32 gradient as
`decoupled_grad`; masters, moments and the rounding into the parameters belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1hpc.train.arena import Arena, TensorSpec
from r1hpc.train.staging import Copies, Exchange, InPlace, Piece, PlainCopies, Staged, StreamCopies, staging_specs

PIECE_ELEMENTS = 4 * 1024 * 1024
"""Values moved and computed at a time: 16 MiB of gradient take 0.3 ms at the 55 GB/s of PCIe 5, thirty times what it
costs to start the copy, and the buffers both ways come to 64 MiB."""

VECTOR_ELEMENTS = 16
"""Pieces are multiples of this, float32 values in the widest vector of a CPU: the kernel treats the end of what it is
given one value at a time, which rounds otherwise, and results must not depend on the size of pieces."""


@dataclass(frozen=True)
class AdamShard:
    """What this rank owns of one parameter: n values."""

    param: Tensor
    """[n] view of the parameter, in its dtype; Megatron sets its `decoupled_grad`, [n] float32."""
    group: int
    """Of param_groups."""
    master: Tensor
    """[n] float32; the parameter is this, rounded. The same for the moments."""
    exp_avg: Tensor
    exp_avg_sq: Tensor


class HostAdam(torch.optim.Optimizer):
    """AdamW, decoupled decay, the step count in the group. `allocate` comes before the first step.

    Megatron's distributed optimizer replaces the parameters of the groups by its shards of them: only after that is it
    known what there is to allocate for.
    """

    def __init__(
        self,
        param_groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        offload: bool,
        overlap: bool = False,
        piece_elements: int = PIECE_ELEMENTS,
    ) -> None:
        """Each group says its `params` and `weight_decay`; all take `lr` as it is at each step.

        offload: the state lies in host memory, pinned if the parameters are on a GPU; else beside the parameters.
        overlap: copy one piece while another is computed; only with offload.
        """
        assert piece_elements % VECTOR_ELEMENTS == 0, f"{piece_elements} is not a multiple of {VECTOR_ELEMENTS}"
        super().__init__(param_groups, {"lr": 0.0, "betas": betas, "eps": eps, "step": 0})
        self.shards: list[AdamShard] = []
        """In the order of the groups; none before allocate()."""
        self._offload, self._overlap, self._piece_elements = offload, overlap, piece_elements
        self._arena: Arena | None = None
        self._exchange: Exchange = InPlace()

    def allocate(self) -> None:
        """Make masters, equal to the parameters as they are now, and moments of zero: once, in one allocation."""
        assert self._arena is None, "the state is allocated already"
        owned = [(number, param) for number, group in enumerate(self.param_groups) for param in group["params"]]
        device = owned[0][1].device if owned else torch.device("cpu")
        specs = [TensorSpec((param.numel(),), torch.float32) for _, param in owned for _ in range(3)]
        longest = max((param.numel() for _, param in owned), default=0)
        piece = min(self._piece_elements, _rounded_up(longest, VECTOR_ELEMENTS))
        buffers = staging_specs(piece) if self._offload else []
        place = torch.device("cpu") if self._offload else device
        self._arena = Arena(specs + buffers, place, pinned=self._offload and device.type == "cuda")
        tensors = iter(self._arena.tensors)
        self.shards = [
            AdamShard(param, group, next(tensors), next(tensors).zero_(), next(tensors).zero_())
            for group, param in owned
        ]
        if self._offload:
            self._exchange = Staged(list(tensors), _copies(device), _copies(device), self._overlap)
        self.masters_from_parameters()

    @property
    def state_bytes(self) -> int:
        """Of masters, moments and staging buffers."""
        return self._arena.size_bytes if self._arena is not None else 0

    @torch.no_grad()
    def masters_from_parameters(self) -> None:
        """Set the masters to the parameters' values, as is due after weights were loaded."""
        for shard in self.shards:
            for part in self._parts(shard):
                shard.master[part].copy_(shard.param[part])

    @torch.no_grad()
    def differing(self, shard: AdamShard) -> int:
        """How many of the masters, rounded to the parameter's dtype, are not it bit for bit."""
        bits = {2: torch.int16, 4: torch.int32}[shard.param.element_size()]
        count = 0
        for part in self._parts(shard):
            weights = shard.param[part].to(shard.master.device)
            count += int((shard.master[part].to(weights.dtype).view(bits) != weights.view(bits)).sum())
        return count

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step with the gradients that the parameters have; done, on the device too, when this returns."""
        assert closure is None, "a loss is not evaluated here"
        assert self._arena is not None, "allocate() was not called"
        place = self.shards[0].master.device if self.shards else torch.device("cpu")
        for group in self.param_groups:
            group["step"] += 1
        counts = [torch.full((), float(group["step"]), device=place) for group in self.param_groups]

        def update(piece: Piece, gradient: Tensor) -> None:
            _adamw(piece, gradient, self.param_groups[piece.group], counts[piece.group])

        self._exchange.run(list(self._pieces()), update)

    def close(self) -> None:
        """Let go of the state's memory; nothing can be done with it any more."""
        if self._arena is not None:
            self._arena.close()
        self.shards, self._exchange = [], InPlace()

    def _pieces(self) -> Iterator[Piece]:
        for shard in self.shards:
            gradient: Tensor = shard.param.decoupled_grad  # type: ignore[attr-defined]
            assert gradient.dtype == torch.float32, f"gradients must be float32, not {gradient.dtype}"
            for part in self._parts(shard):
                yield Piece(
                    weights=shard.param[part],
                    gradient=gradient[part],
                    master=shard.master[part],
                    exp_avg=shard.exp_avg[part],
                    exp_avg_sq=shard.exp_avg_sq[part],
                    group=shard.group,
                )

    def _parts(self, shard: AdamShard) -> Iterator[slice]:
        for begin in range(0, shard.param.numel(), self._piece_elements):
            yield slice(begin, begin + self._piece_elements)


def _adamw(piece: Piece, gradient: Tensor, group: dict[str, Any], step: Tensor) -> None:
    lr = float(group["lr"])
    # Even with lr 0 the kernel adds +0.0 or -0.0, and -0.0 + 0.0 is 0.0; a step of 0 must not change a bit.
    master = piece.master if lr else piece.master.clone()
    torch._fused_adamw_(
        [master],
        [gradient],
        [piece.exp_avg],
        [piece.exp_avg_sq],
        [],
        [step],
        lr=lr,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


def _copies(device: torch.device) -> Copies:
    return StreamCopies(device) if device.type == "cuda" else PlainCopies()


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
