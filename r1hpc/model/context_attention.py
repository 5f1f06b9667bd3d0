"""Causal attention over packed sequences, of which a context-parallel rank holds some chunks of queries.

Each chunk attends to itself causally and to everything before it in its sequence without a mask, and the two results
are merged by their log-sum-exps. A causal mask whose corner is at the bottom right would do it in one call, but no
kernel that takes key heads of 192 and value heads of 128 at full speed has one.

A micro-batch may have a hundred such blocks of a few microseconds each: whatever is done around the kernels is done
once for all of them, or the host takes longer to ask for the work than the GPU to do it (benchmarks/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1hpc.model.attention_kernels import AttentionKernel, MathKernel, kernel_for
from r1hpc.model.packed import Chunk, PackedSequences

Block = tuple[Tensor, Tensor]
"""Attention of a chunk's queries to some keys, as a kernel gives it: [1, H, Q, V] and the log-sum-exp."""
MERGED_TOKENS = 4096
"""At a time."""

Part = tuple[slice, Tensor]
"""Some tokens, and what a block adds to their gradient: [1, H, tokens, width]."""


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: PackedSequences,
    scale: float,
    kernel: AttentionKernel | None = None,
) -> Tensor:
    """What each of this rank's tokens attends to: [T, H, V] in the dtype of the query.

    query: [T, H, D], this rank's tokens. key: [W, H, D] and value: [W, H, V], the tokens of the whole sequences in
    order; W = T * cp_size. No communication: gradients of key and value are this rank's part, to be summed over ranks.
    kernel: null for the fastest that the device has.
    """
    kernel = kernel or kernel_for(query)
    out: Tensor = _PackedAttention.apply(query, key, value, sequences, scale, kernel)  # type: ignore[no-untyped-call]
    return out


class _PackedAttention(torch.autograd.Function):
    """Chunk by chunk; keeps q, k, v, the output and one log-sum-exp a query and head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sequences: PackedSequences,
        scale: float,
        kernel: AttentionKernel,
    ) -> Tensor:
        q, k, v = (_heads_first(x) for x in (query, key, value))
        own: list[Block] = []
        before: list[Block | None] = []
        for chunk in sequences.chunks:
            by, mine = _kernel(kernel, chunk), _tokens(q, chunk.local)
            own.append(by.forward(mine, _tokens(k, chunk.whole), _tokens(v, chunk.whole), scale, causal=True))
            before.append(
                by.forward(mine, _tokens(k, chunk.before), _tokens(v, chunk.before), scale, causal=False)
                if chunk.has_before
                else None
            )
        ctx.sequences, ctx.scale, ctx.kernel = sequences, scale, kernel
        ctx.lse_shapes = [lse.shape for _, lse in own]
        joined, others = _joined(own), _joined(_filled(before, own)) if any(before) else None
        del own, before
        out, lse = joined if others is None else _merged(joined, others, sequences)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        chunks: Sequence[Chunk] = ctx.sequences.chunks
        # cuDNN in some PyTorch versions looks its plan up by the layouts of q, k and v alone: those of the output, of
        # its gradient and of the log-sum-exp must always be the same.
        grad_out, q, k, v, o = (_heads_first(x) for x in (grad.contiguous(), query, key, value, out))
        lses = lse.split([shape.numel() for shape in ctx.lse_shapes])
        sums = tuple(_Sum(x) for x in (query, key, value))
        for chunk, shape, flat in zip(chunks, ctx.lse_shapes, lses, strict=True):
            by, of_chunk, mine = _kernel(ctx.kernel, chunk), flat.view(shape), chunk.local
            grads, queries, outs = (_tokens(x, mine) for x in (grad_out, q, o))
            for keys, causal in ((chunk.whole, True), (chunk.before, False))[: 1 + chunk.has_before]:
                key_values = _tokens(k, keys), _tokens(v, keys)
                parts = by.backward(grads, queries, *key_values, outs, of_chunk, ctx.scale, causal)
                _add(sums, (mine, keys, keys), parts)
                del parts  # before the next block's
        grad_q, grad_k, grad_v = (whole.total() for whole in sums)
        return grad_q, grad_k, grad_v, None, None, None


def _heads_first(x: Tensor) -> Tensor:
    """[tokens, H, width] -> [1, H, tokens, width]; no copy."""
    return x.transpose(0, 1).unsqueeze(0)


def _tokens_first(x: Tensor) -> Tensor:
    """[1, H, tokens, width] -> [tokens, H, width]; no copy."""
    return x.squeeze(0).transpose(0, 1)


def _tokens(x: Tensor, places: slice) -> Tensor:
    """Of [1, H, tokens, width], these tokens; no copy."""
    return x.narrow(2, places.start, places.stop - places.start)


def _kernel(kernel: AttentionKernel, chunk: Chunk) -> AttentionKernel:
    """The kernel itself, but for single tokens, which PyTorch does not give to cuDNN."""
    return kernel if chunk.local.stop - chunk.local.start > 1 else MathKernel()


def _joined(blocks: Sequence[Block]) -> Block:
    """[T, H, V] of the blocks of all chunks, and their log-sum-exps one after another: [T * H]."""
    return torch.cat([_tokens_first(out) for out, _ in blocks]), torch.cat([lse.flatten() for _, lse in blocks])


def _filled(blocks: Sequence[Block | None], like: Sequence[Block]) -> list[Block]:
    """Where there is none, one that weighs nothing."""
    return [block or (out, torch.full_like(lse, float("-inf"))) for block, (out, lse) in zip(blocks, like, strict=True)]


def _merged(one: Block, other: Block, sequences: PackedSequences) -> Block:
    """Attention to the keys of both, from attention to either, all joined; written over the first."""
    (out, lse), (other_out, other_lse) = one, other
    both = torch.logaddexp(lse, other_lse)
    share, other_share = (lse - both).exp(), (other_lse - both).exp()
    places = _lse_places(sequences, heads=out.shape[1], device=out.device)
    # Some tokens at a time: in float32 they take twice the memory.
    for begin in range(0, len(out), MERGED_TOKENS):
        tokens = slice(begin, begin + MERGED_TOKENS)
        merged = out[tokens] * share[places[tokens]]
        out[tokens] = merged.addcmul_(other_out[tokens], other_share[places[tokens]])
    return out, both


def _lse_places(sequences: PackedSequences, heads: int, device: torch.device) -> Tensor:
    """[T, H, 1]: where the log-sum-exp of each token and head lies in those of `_joined`. All layers share it."""
    name = ("lse_places", heads)
    if name not in sequences.computed:
        begins, sizes = torch.tensor(
            [(chunk.local.start, chunk.local.stop - chunk.local.start) for chunk in sequences.chunks]
        ).T.to(device)
        total = sequences.local_tokens
        begin, size = (torch.repeat_interleave(x, sizes, output_size=total)[:, None] for x in (begins, sizes))
        token, head = torch.arange(total, device=device)[:, None], torch.arange(heads, device=device)
        sequences.computed[name] = (heads * begin + head * size + token - begin).int().unsqueeze(-1)
    places: Tensor = sequences.computed[name]
    return places


def _add(sums: Sequence[_Sum], places: Sequence[slice], parts: Sequence[Tensor]) -> None:
    """A block's gradients of q, k and v to those of all tokens."""
    for total, tokens, part in zip(sums, places, parts, strict=True):
        total.add(tokens, part)


class _Sum:
    """Gradients of some tokens after another, added to those of all; several at a time, but never many."""

    def __init__(self, like: Tensor) -> None:
        """like: [tokens, H, width]."""
        self._total = torch.zeros_like(like)
        self._parts: list[Part] = []
        self._waiting = 0

    def add(self, tokens: slice, part: Tensor) -> None:
        """part: [1, H, those tokens, width]."""
        self._parts.append((tokens, part))
        self._waiting += tokens.stop - tokens.start
        if self._waiting >= len(self._total) // 4:
            self._add_waiting()

    def total(self) -> Tensor:
        """Like what it was made with."""
        self._add_waiting()
        return self._total

    def _add_waiting(self) -> None:
        for group in _disjoint(self._parts):
            wholes = [self._total[tokens] for tokens, _ in group]
            torch._foreach_add_(wholes, [_tokens_first(part) for _, part in group])
        self._parts.clear()
        self._waiting = 0


def _disjoint(parts: Sequence[Part]) -> list[list[Part]]:
    """In as few groups as may be added at once: in each, tokens ascend and come but once."""
    groups: list[list[Part]] = []
    for part in parts:
        for group in groups:
            if group[-1][0].stop <= part[0].start:
                group.append(part)
                break
        else:
            groups.append([part])
    return groups
