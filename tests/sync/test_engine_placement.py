"""Inside an engine: which experts are put in their place directly, and when SGLang's loader does them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from r1hpc.sync.engine_placement import load_weights
from r1hpc.sync.engine_weights import Expert, Live
from tests.sync.test_engine_weights import LAYER, Rank, sent

FIRST = f"{LAYER}.mlp.experts.{{}}."


class Loading(Rank):
    """Loads experts as SGLang does; `swapped`: as SGLang does for kernels that want up above gate."""

    def __init__(self, weights: Mapping[str, Tensor], rank: int, ranks: int, swapped: bool = False) -> None:
        super().__init__(weights, rank, ranks)
        self.swapped = swapped
        for parameter in self.parameters():
            parameter.data.fill_(torch.nan)

    def load_weights(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        super().load_weights(weights)
        for name, tensor in weights:
            expert = Expert.of(name)
            if expert is None or (place := Live(self).expert_place(expert)) is None:
                continue
            if self.swapped and expert.projection != "down":
                other = {"gate": "up", "up": "gate"}[expert.projection]
                place = Live(self).expert_place(Expert(expert.module, expert.number, other, expert.what))
                assert place is not None
            place.copy_(tensor[: len(place)])


def experts(model: Rank) -> list[Tensor]:
    return [model.get_parameter(f"{LAYER}.mlp.experts.{name}_weight").data for name in ("w13", "w2")]


def loaded_experts(model: Loading) -> set[int]:
    return {expert.number for name in model.loaded if (expert := Expert.of(name)) is not None}


@pytest.mark.parametrize(("rank", "ranks", "by_loader"), [(0, 1, {0}), (0, 2, {0, 2, 3}), (1, 2, {2, 0, 1})])
def test_one_expert_is_loaded_by_sglang_and_the_others_put_beside_it(
    rank: int, ranks: int, by_loader: set[int]
) -> None:
    """Those of other ranks go to the loader too, which knows what to do with them."""
    weights = sent()
    model = Loading(weights, rank, ranks)
    load_weights(model, list(weights.items()))
    assert loaded_experts(model) == by_loader
    assert set(model.loaded) >= {name for name in weights if Expert.of(name) is None}
    assert len(model.loaded) == len(set(model.loaded))
    for found, expected in zip(experts(model), experts(Rank(weights, rank, ranks)), strict=True):
        assert torch.equal(found, expected)


def test_where_sglang_puts_an_expert_elsewhere_it_loads_all() -> None:
    weights = sent()
    model = Loading(weights, 0, 1, swapped=True)
    load_weights(model, list(weights.items()))
    assert sorted(model.loaded) == sorted(weights)
    gate_up, down = experts(model)
    for number in range(len(gate_up)):
        up, gate = gate_up[number].chunk(2)
        assert torch.equal(gate, weights[FIRST.format(number) + "gate_proj.weight"])
        assert torch.equal(up, weights[FIRST.format(number) + "up_proj.weight"])
        assert torch.equal(down[number], weights[FIRST.format(number) + "down_proj.weight"])


def test_experts_that_are_cut_or_of_another_dtype_are_loaded_by_sglang() -> None:
    weights = sent()
    of_other_dtype = {name: tensor.bfloat16() for name, tensor in weights.items()}
    model = Loading(weights, 0, 1)
    load_weights(model, list(of_other_dtype.items()))
    assert sorted(model.loaded) == sorted(weights)
    cut = {name: torch.cat([tensor, tensor]) if Expert.of(name) else tensor for name, tensor in weights.items()}
    model = Loading(weights, 0, 1)
    load_weights(model, list(cut.items()))
    assert sorted(model.loaded) == sorted(weights)


def test_a_payload_without_experts_and_one_of_nothing_else_are_loaded() -> None:
    weights = sent()
    model = Loading(weights, 0, 1)
    load_weights(model, [(name, tensor) for name, tensor in weights.items() if Expert.of(name) is None])
    assert loaded_experts(model) == set()
    model.loaded.clear()
    load_weights(model, [(name, tensor) for name, tensor in weights.items() if Expert.of(name) is not None])
    assert loaded_experts(model) == {0}
    for found, expected in zip(experts(model), experts(Rank(weights)), strict=True):
        assert torch.equal(found, expected)
