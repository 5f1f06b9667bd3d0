"""RMSNorm and the replicated linear: precision, and gradients where tensor ranks share the sequence."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from r1hpc.model.linear import ReplicatedLinear
from r1hpc.model.norm import RMSNorm
from r1hpc.model.parallel import Layout
from tests.model.configs import tiny_config
from tests.model.ranks import on_ranks

TOKENS, HIDDEN, OUTPUTS = 12, 128, 24


class NormThenLinear(MegatronModule):  # type: ignore[misc]
    """The two modules under test, as attention uses them."""

    def __init__(self, layout: Layout) -> None:
        config = tiny_config(layout)
        super().__init__(config)
        self.norm = RMSNorm(config, HIDDEN, eps=config.layernorm_epsilon)
        self.linear = ReplicatedLinear(HIDDEN, OUTPUTS, config)
        with torch.no_grad():
            self.norm.weight.copy_(1 + 0.1 * torch.randn(HIDDEN, generator=generator(1)))
            self.linear.weight.copy_(torch.randn(OUTPUTS, HIDDEN, generator=generator(2)))

    def forward(self, x: Tensor) -> Tensor:
        out, bias = self.linear(self.norm(x))
        assert bias is None
        return out  # type: ignore[no-any-return]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(layout: Layout) -> dict[str, Tensor]:
    """main_grad of both weights after Megatron has reduced them, from this rank's share of the tokens."""
    module = NormThenLinear(layout)
    config = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=False)
    ddp = DistributedDataParallel(module.config, config, module)
    share = slice(*(TOKENS // layout.tp * (parallel_state.get_tensor_model_parallel_rank() + end) for end in (0, 1)))
    x, of_out = (
        torch.randn(TOKENS, HIDDEN, generator=generator(3)),
        torch.randn(TOKENS, OUTPUTS, generator=generator(4)),
    )
    (ddp(x[share]) * of_out[share]).sum().backward()
    finalize_model_grads([ddp])
    return {name: weight.main_grad.clone() for name, weight in module.named_parameters()}


def test_gradients_of_shares_of_the_sequence_add_up_to_those_of_one_process(tmp_path: Path) -> None:
    (whole,) = on_ranks(lambda: gradients(Layout()), Layout(), tmp_path)
    shared = on_ranks(lambda: gradients(Layout(tp=2)), Layout(tp=2), tmp_path)
    x = torch.randn(TOKENS, HIDDEN, generator=generator(3)).double()
    weight = (1 + 0.1 * torch.randn(HIDDEN, generator=generator(1))).double()
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    by_hand = torch.randn(TOKENS, OUTPUTS, generator=generator(4)).double().t() @ normed
    assert set(whole) == {"norm.weight", "linear.weight"}
    assert (whole["linear.weight"] - by_hand).abs().max() < 1e-5 * by_hand.abs().max()
    for name, gradient in whole.items():
        for rank in shared:
            assert (rank[name] - gradient).abs().max() < 1e-6 * gradient.abs().max(), name


def rounded() -> tuple[Tensor, Tensor]:
    config = tiny_config(dtype=torch.bfloat16)
    norm = RMSNorm(config, HIDDEN)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.1 * torch.randn(HIDDEN, generator=generator(1)))
    # Large enough that a sum of squares in bfloat16 would be wrong in its first digits.
    x = (100 * torch.randn(64, HIDDEN, generator=generator(3))).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    return norm(x).detach(), exact.detach()


def test_the_norm_of_bf16_is_computed_in_float32_and_rounded_once(tmp_path: Path) -> None:
    ((found, exact),) = on_ranks(rounded, Layout(), tmp_path)
    # Rounding to 8 significant bits is wrong by 2^-8 of the value at most, float32 by a little more.
    assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 * 1.001).all()


def boxes() -> list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    linear = ReplicatedLinear(HIDDEN, OUTPUTS, tiny_config(Layout(tp=2)))
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state = linear.sharded_state_dict("layer.", metadata={"dp_cp_group": group})
    found = []
    for box in state.values():
        assert isinstance(box, ShardedTensor)
        found.append((box.key, tuple(box.global_shape), tuple(box.global_offset), box.replica_id))
    return found


def test_one_rank_of_several_writes_a_replicated_weight(tmp_path: Path) -> None:
    found = on_ranks(boxes, Layout(tp=2), tmp_path)
    whole = ("layer.weight", (OUTPUTS, HIDDEN), (0, 0))
    assert found == [[(*whole, (0, rank, 0))] for rank in range(2)]
