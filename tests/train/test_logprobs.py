"""Chunked, vocabulary-sharded log-probs and entropies against log_softmax of all the logits in float64."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.model import compat
from r1hpc.train.logprobs import Entropy, TokenLogprobs, gather_hidden, token_logprobs
from tests.forked_ranks import fork_ranks, join_gloo

T, H, V = 24, 16, 40
ROWS = torch.tensor([1, 2, 3, 7, 8, 11, 12, 13, 20, 23])
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Scored:
    """Log-probs, entropies, and the gradients of `objective` by the hidden states and the weight."""

    logprobs: Tensor
    entropy: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """hidden [T, H] and weight [V, H], float64, logits of some +-10, and a target for each of ROWS, 0 and V - 1 too."""
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(T, H, generator=generator, dtype=torch.float64)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (len(ROWS),), generator=generator)
    targets[0], targets[-1] = 0, V - 1
    return hidden, weight, targets


def objective(logprobs: Tensor, entropy: Tensor) -> Tensor:
    """Another weight for every token, so that a row mistaken for another shows."""
    weights = torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)
    return (weights * logprobs).sum() + (weights.flip(0) * entropy).sum()


def naive(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, temperature: float) -> Scored:
    """All the logits at once, in the dtype given."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logp = torch.log_softmax(hidden[rows] @ weight.t() / temperature, dim=-1)
    logprobs, entropy = logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(dim=-1)
    grads = torch.autograd.grad(objective(logprobs, entropy), (hidden, weight))
    return Scored(logprobs.detach(), entropy.detach(), *grads)


def error(found: Tensor, expected: Tensor) -> float:
    """max|d| / max|value|."""
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).abs().max() / expected.abs().max()).item()


def sharded(temperature: float, chunk: int) -> Scored:
    """This rank's share: a shard of the vocabulary, and of the sequence, as the model hands them over. Float32."""
    hidden, weight, targets = problem()
    rank, tp = dist.get_rank(), dist.get_world_size()
    group = dist.group.WORLD
    own_hidden = hidden.float().chunk(tp)[rank].unsqueeze(1).requires_grad_()
    own_weight = weight.float().chunk(tp)[rank].clone().requires_grad_()
    found = token_logprobs(
        gather_hidden(own_hidden, group),
        own_weight,
        targets,
        ROWS,
        temperature=temperature,
        group=group,
        chunk=chunk,
        entropy=Entropy.GRADIENT,
    )
    assert found.entropy is not None
    grads = torch.autograd.grad(objective(found.logprobs, found.entropy), (own_hidden, own_weight))
    return Scored(found.logprobs.detach(), found.entropy.detach(), grads[0].squeeze(1), grads[1])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_equals_log_softmax_of_all_logits_whatever_the_shards_chunks_and_temperature(tp: int, tmp_path: Path) -> None:
    cases = [(temperature, chunk) for temperature in (1.0, 0.8) for chunk in (1, 3, len(ROWS), T)]

    def on_rank(rank: int) -> list[Scored]:
        compat.prepare("cpu")
        join_gloo(rank, tp, tmp_path / "rendezvous", DEADLINE_S)
        return [sharded(temperature, chunk) for temperature, chunk in cases]

    ranks = fork_ranks(on_rank, tp, DEADLINE_S)
    for number, (temperature, _) in enumerate(cases):
        expected = naive(*problem(), ROWS, temperature)
        for rank in ranks:
            assert error(rank[number].logprobs, expected.logprobs) < 1e-6
            assert error(rank[number].entropy, expected.entropy) < 1e-6
        assert error(torch.cat([rank[number].grad_hidden for rank in ranks]), expected.grad_hidden) < 1e-5
        assert error(torch.cat([rank[number].grad_weight for rank in ranks]), expected.grad_weight) < 1e-5


def test_a_shard_whose_logits_lie_far_below_the_others_neither_overflows_nor_counts(tmp_path: Path) -> None:
    """Logits 500, 500 in one shard and -500, -500 in the other: log-prob -log 2, or -1000 - log 2; entropy log 2."""

    def on_rank(rank: int) -> tuple[list[float], list[float]]:
        join_gloo(rank, 2, tmp_path / "rendezvous", DEADLINE_S)
        weight = torch.full((2, 1), 500.0 if rank == 0 else -500.0)
        found = token_logprobs(
            torch.ones(2, 1),
            weight,
            torch.tensor([1, 2]),
            temperature=1.0,
            group=dist.group.WORLD,
            chunk=8,
            entropy=Entropy.VALUE,
        )
        assert found.entropy is not None
        return found.logprobs.tolist(), found.entropy.tolist()

    for logprobs, entropy in fork_ranks(on_rank, 2, DEADLINE_S):
        assert logprobs == pytest.approx([-0.6931472, -1000.6931472])
        assert entropy == pytest.approx([0.6931472, 0.6931472])


def test_two_tokens_worked_by_hand() -> None:
    """Logits 0 and log 3 at temperature 1: p = 1/4, 3/4; at temperature 0.5 they are 0 and log 9: p = 1/10, 9/10."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [1.0986123]])
    for temperature, p in ((1.0, [0.25, 0.75]), (0.5, [0.1, 0.9])):
        for target in (0, 1):
            found = token_logprobs(hidden, weight, torch.tensor([target]), temperature=temperature, chunk=4)
            assert found.logprobs.exp().tolist() == pytest.approx([p[target]])


@pytest.mark.parametrize("chunk", [1, 3, 10])
@pytest.mark.parametrize("entropy", list(Entropy))
def test_gradcheck_in_float64(chunk: int, entropy: Entropy) -> None:
    hidden, weight, targets = problem()
    hidden, weight = hidden[:12, :3].clone().requires_grad_(), weight[:6, :3].clone().requires_grad_()
    rows, targets = torch.tensor([0, 2, 3, 11]), torch.tensor([5, 0, 2, 2])

    def differentiable(hidden: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        found = token_logprobs(hidden, weight, targets, rows, temperature=0.8, chunk=chunk, entropy=entropy)
        assert found.logprobs.dtype == torch.float64
        assert (found.entropy is None) == (entropy is Entropy.OFF)
        return tuple(t for t in (found.logprobs, found.entropy) if t is not None and t.requires_grad)

    assert len(differentiable(hidden, weight)) == (2 if entropy is Entropy.GRADIENT else 1)
    assert torch.autograd.gradcheck(differentiable, (hidden, weight))


def test_without_rows_every_row_of_the_hidden_states_has_a_target() -> None:
    hidden, weight, _ = problem()
    targets = torch.arange(T)
    found = one_process(hidden, weight, targets, None)
    expected = naive(hidden, weight, targets, torch.arange(T), 0.8)
    assert error(found.logprobs, expected.logprobs) < 1e-12
    assert error(found.grad_hidden, expected.grad_hidden) < 1e-12


def test_a_row_with_two_targets_collects_the_gradients_of_both() -> None:
    hidden, weight, targets = problem()
    rows = torch.tensor([4, 4, 9, 4])
    found = one_process(hidden, weight, targets[:4], rows)
    assert error(found.grad_hidden, naive(hidden, weight, targets[:4], rows, 0.8).grad_hidden) < 1e-12


def test_without_any_row_backward_runs_and_every_gradient_is_zero() -> None:
    hidden, weight, targets = problem()
    found = one_process(hidden, weight, targets[:0], ROWS[:0])
    assert found.logprobs.shape == found.entropy.shape == (0,)
    assert found.grad_hidden.shape == (T, H) and not found.grad_hidden.any()
    assert found.grad_weight.shape == (V, H) and not found.grad_weight.any()


def test_bf16_rounds_the_logits_and_each_gradient_once_and_sums_in_float32() -> None:
    """Against float64 from the same bf16 logits: what is left is the rounding of the gradients, 2^-9 of each."""
    hidden, weight, targets = (t.bfloat16() if t.is_floating_point() else t for t in problem())
    found = one_process(hidden, weight, targets, ROWS)
    assert found.logprobs.dtype == found.entropy.dtype == torch.float32
    assert found.grad_hidden.dtype == found.grad_weight.dtype == torch.bfloat16
    logits = (hidden[ROWS] @ weight.t()).double().requires_grad_()
    logp = torch.log_softmax(logits / 0.8, dim=-1)
    logprobs, entropy = logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(dim=-1)
    (grad_logits,) = torch.autograd.grad(objective(logprobs, entropy), logits)
    assert error(found.logprobs, logprobs.detach()) < 1e-6
    assert error(found.entropy, entropy.detach()) < 1e-6
    rounded = grad_logits.bfloat16().double()
    assert error(found.grad_weight, rounded.t() @ hidden[ROWS].double()) < 2**-8
    assert error(found.grad_hidden[ROWS], rounded @ weight.double()) < 2**-8


def test_bf16_gradients_of_the_weight_do_not_depend_on_the_number_of_chunks() -> None:
    """A sum rounded to bf16 in between would stop at 128, where 128 + 0.5 is 128: 512 addends of 0.5."""
    hidden = torch.ones(512, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(512, dtype=torch.int64)
    for chunk in (1, 512):
        (grad,) = torch.autograd.grad(
            token_logprobs(hidden, weight, targets, temperature=1.0, chunk=chunk).logprobs.sum(), weight
        )
        assert grad.flatten().tolist() == [256.0, -256.0]


def test_nothing_is_kept_and_no_gradient_flows_without_grad_mode() -> None:
    hidden, weight, targets = problem()
    with torch.no_grad():
        found = token_logprobs(hidden, weight.requires_grad_(), targets, ROWS, temperature=0.8, chunk=3)
    assert not found.logprobs.requires_grad
    assert error(found.logprobs, naive(hidden, weight.detach(), targets, ROWS, 0.8).logprobs) < 1e-12


def one_process(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor | None) -> Scored:
    """All of the vocabulary, at temperature 0.8, by chunks of 3."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    found: TokenLogprobs = token_logprobs(
        hidden, weight, targets, rows, temperature=0.8, chunk=3, entropy=Entropy.GRADIENT
    )
    assert found.entropy is not None
    grads = torch.autograd.grad(objective(found.logprobs, found.entropy), (hidden, weight))
    return Scored(found.logprobs.detach(), found.entropy.detach(), *grads)
