"""Inside an engine: what is found wrong with its weights. The modules stand for SGLang's, with its names and cuts."""

from __future__ import annotations

import base64
import pickle
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from r1hpc.checkpoint.fp8 import dequantize, quantize
from r1hpc.sync.checksum import checksum
from r1hpc.sync.encoding import SentTensor
from r1hpc.sync.engine_loader import load
from r1hpc.sync.engine_weights import compare, forget, never_written
from r1hpc.sync.order import ANSWER_BYTES, Answer, Order, Placed, Work
from r1hpc.sync.shared_memory import HostMemory

HIDDEN, HEADS, NOPE, V_HEAD, LATENT, EXPERTS = 256, 4, 32, 32, 64, 4
LAYER = "model.layers.0"


def sent() -> dict[str, Tensor]:
    """Weights of one layer, as Hugging Face names them."""
    torch.manual_seed(0)
    shapes = {
        "model.embed_tokens.weight": (300, HIDDEN),
        f"{LAYER}.input_layernorm.weight": (HIDDEN,),
        f"{LAYER}.self_attn.q_a_proj.weight": (96, HIDDEN),
        f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight": (80, HIDDEN),
        f"{LAYER}.self_attn.kv_b_proj.weight": (HEADS * (NOPE + V_HEAD), LATENT),
        f"{LAYER}.self_attn.o_proj.weight": (HIDDEN, HEADS * V_HEAD),
        f"{LAYER}.mlp.shared_experts.gate_proj.weight": (128, HIDDEN),
        f"{LAYER}.mlp.shared_experts.up_proj.weight": (128, HIDDEN),
        f"{LAYER}.mlp.shared_experts.down_proj.weight": (HIDDEN, 128),
    }
    for expert in range(EXPERTS):
        for projection in ("gate", "up"):
            shapes[f"{LAYER}.mlp.experts.{expert}.{projection}_proj.weight"] = (128, HIDDEN)
        shapes[f"{LAYER}.mlp.experts.{expert}.down_proj.weight"] = (HIDDEN, 128)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


class Rank(nn.Module):
    """One of two ranks of an engine, or the only one: attention and dense weights cut by rows or columns."""

    def __init__(self, weights: Mapping[str, Tensor], rank: int = 0, ranks: int = 1) -> None:
        super().__init__()
        self.loaded: list[str] = []
        pick = {name.removeprefix(f"{LAYER}."): tensor.clone() for name, tensor in weights.items()}

        def rows(name: str) -> Tensor:
            return pick[name].chunk(ranks, 0)[rank]

        def columns(name: str) -> Tensor:
            return pick[name].chunk(ranks, 1)[rank]

        # A vocabulary of 300 in multiples of 64, cut: 160 rows a rank of two.
        vocabulary = torch.cat([pick["model.embed_tokens.weight"], torch.zeros(20, HIDDEN)]).chunk(ranks)[rank]
        self.put("model.embed_tokens.weight", vocabulary)
        self.put(f"{LAYER}.input_layernorm.weight", pick["input_layernorm.weight"])
        attention, mlp = f"{LAYER}.self_attn", f"{LAYER}.mlp"
        both = [pick["self_attn.q_a_proj.weight"], pick["self_attn.kv_a_proj_with_mqa.weight"]]
        self.put(f"{attention}.fused_qkv_a_proj_with_mqa.weight", torch.cat(both))
        self.put(f"{attention}.kv_b_proj.weight", rows("self_attn.kv_b_proj.weight"))
        self.put(f"{attention}.o_proj.weight", columns("self_attn.o_proj.weight"))
        self.put(f"{attention}.attn_mqa.k_scale", torch.tensor(1.0))
        halves = [rows(f"mlp.shared_experts.{half}_proj.weight") for half in ("gate", "up")]
        self.put(f"{mlp}.shared_experts.gate_up_proj.weight", torch.cat(halves))
        self.put(f"{mlp}.shared_experts.down_proj.weight", columns("mlp.shared_experts.down_proj.weight"))
        mine = range(rank * EXPERTS // ranks, (rank + 1) * EXPERTS // ranks)
        gate_up = [torch.cat([pick[f"mlp.experts.{e}.{half}_proj.weight"] for half in ("gate", "up")]) for e in mine]
        self.put(f"{mlp}.experts.w13_weight", torch.stack(gate_up))
        self.put(f"{mlp}.experts.w2_weight", torch.stack([pick[f"mlp.experts.{e}.down_proj.weight"] for e in mine]))
        experts = self.get_submodule(f"{mlp}.experts")
        experts.num_local_experts, experts.moe_ep_rank = EXPERTS // ranks, rank  # type: ignore[assignment]
        self.absorb(self.get_parameter(f"{attention}.kv_b_proj.weight").data)

    def put(self, name: str, tensor: Tensor) -> None:
        module: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, nn.Parameter(tensor.clone(), requires_grad=False))

    def absorb(self, kv_b: Tensor) -> None:
        """What SGLang keeps of kv_b_proj for its absorbed attention."""
        keys, values = torch.split(kv_b.view(-1, NOPE + V_HEAD, LATENT), [NOPE, V_HEAD], dim=1)
        attention = self.get_submodule(f"{LAYER}.self_attn")
        attention.w_kc, attention.w_vc = keys.contiguous(), values.transpose(1, 2).contiguous()

    def load_weights(self, weights: Sequence[tuple[str, Tensor]]) -> None:
        self.loaded += [name for name, _ in weights]
        if any(name == "unknown" for name, _ in weights):
            raise KeyError("unknown")


def change(model: Rank, name: str, place: int = 0) -> None:
    model.get_parameter(name).data.view(-1)[place] += 0.5


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2)])
def test_weights_as_they_were_sent_are_found_alike(rank: int, ranks: int) -> None:
    assert compare(Rank(sent(), rank, ranks), sent()) == []


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("changed", "place", "found"),
    [
        ("model.embed_tokens.weight", 3, "model.embed_tokens.weight"),
        (f"{LAYER}.input_layernorm.weight", 0, f"{LAYER}.input_layernorm.weight"),
        (f"{LAYER}.self_attn.fused_qkv_a_proj_with_mqa.weight", 0, f"{LAYER}.self_attn.q_a_proj.weight"),
        (f"{LAYER}.self_attn.fused_qkv_a_proj_with_mqa.weight", -1, f"{LAYER}.self_attn.kv_a_proj_with_mqa.weight"),
        (f"{LAYER}.self_attn.o_proj.weight", 7, f"{LAYER}.self_attn.o_proj.weight"),
        (f"{LAYER}.self_attn.kv_b_proj.weight", 7, f"{LAYER}.self_attn.kv_b_proj.weight"),
        (f"{LAYER}.mlp.shared_experts.gate_up_proj.weight", 0, f"{LAYER}.mlp.shared_experts.gate_proj.weight"),
        (f"{LAYER}.mlp.shared_experts.gate_up_proj.weight", -1, f"{LAYER}.mlp.shared_experts.up_proj.weight"),
        (f"{LAYER}.mlp.experts.w13_weight", 0, f"{LAYER}.mlp.experts.0.gate_proj.weight"),
        (f"{LAYER}.mlp.experts.w2_weight", 0, f"{LAYER}.mlp.experts.0.down_proj.weight"),
    ],
)
def test_one_element_that_differs_names_its_tensor(changed: str, place: int, found: str, ranks: int) -> None:
    model = Rank(sent(), 0, ranks)
    change(model, changed, place)
    assert compare(model, sent()) == [found]


def test_an_expert_of_another_rank_is_none_of_this_ranks_business() -> None:
    weights = sent()
    second = Rank(weights, 1, 2)
    change(second, f"{LAYER}.mlp.experts.w13_weight", -1)
    assert compare(second, weights) == [f"{LAYER}.mlp.experts.3.up_proj.weight"]
    weights[f"{LAYER}.mlp.experts.0.up_proj.weight"] += 1
    assert compare(second, weights) == [f"{LAYER}.mlp.experts.3.up_proj.weight"]


def test_absorbed_halves_that_are_old_are_found() -> None:
    model = Rank(sent(), 0, 2)
    model.absorb(model.get_parameter(f"{LAYER}.self_attn.kv_b_proj.weight").data + 1)
    assert compare(model, sent()) == [f"{LAYER}.self_attn.kv_b_proj.weight (as w_kc and w_vc)"]


def test_absorbed_halves_of_fp8_are_held_against_what_it_stands_for() -> None:
    name = f"{LAYER}.self_attn.kv_b_proj.weight"
    codes, scales = quantize(sent()[name])
    quantized = {name: codes, f"{name}_scale_inv": scales}
    model = Rank(sent())
    model.put(name, codes)
    model.put(f"{name}_scale_inv", scales)
    model.absorb(dequantize(codes, scales))
    assert compare(model, quantized) == []
    model.absorb(dequantize(codes, scales * 2))
    assert compare(model, quantized) == [f"{name} (as w_kc and w_vc)"]


def test_a_tensor_that_the_engine_has_nowhere_is_found() -> None:
    assert compare(Rank(sent()), {"model.layers.0.mlp.new.weight": torch.ones(3)}) == ["model.layers.0.mlp.new.weight"]


def test_what_no_update_brings_is_set_and_all_else_forgotten() -> None:
    model = Rank(sent())
    scale = model.get_parameter(f"{LAYER}.self_attn.attn_mqa.k_scale")
    scale.data.fill_(torch.nan)
    model.put(f"{LAYER}.self_attn.fp8.weight", quantize(torch.randn(128, 128))[0])
    forget(model)
    assert scale.item() == 1.0
    names = {name for name, _ in model.named_parameters()} - {f"{LAYER}.self_attn.attn_mqa.k_scale"}
    assert set(never_written(model)) == names
    # A single element that was left out is enough.
    fp8 = model.get_parameter(f"{LAYER}.self_attn.fp8.weight")
    fp8.data.view(torch.uint8)[:-1] = 0
    fp8.data.view(torch.uint8)[-1, :-1] = 0
    assert f"{LAYER}.self_attn.fp8.weight" in never_written(model)
    fp8.data.view(torch.uint8)[-1, -1] = 0xFE
    assert f"{LAYER}.self_attn.fp8.weight" not in never_written(model)


def ordered(work: Work, names: Sequence[str], data: Tensor, wrong: int = 0) -> tuple[Order, HostMemory, HostMemory]:
    """An order of tensors [2] float32 that follow one another in `data`, and its memory."""
    payload, answer = HostMemory(len(data)), HostMemory(ANSWER_BYTES)
    payload.tensor.copy_(data)
    placed = tuple(Placed(SentTensor(name, torch.float32, (2,)), 8 * i) for i, name in enumerate(names))
    tickets = answer.ticket(), payload.ticket()
    return Order(work, "key", *tickets, len(data), checksum(data) + wrong, placed), payload, answer


@pytest.mark.parametrize(
    ("work", "names", "wrong", "fault", "loaded"),
    [
        ("load", ["a", "b"], 0, None, ["a", "b"]),
        ("load", ["a"], 1, "the payload's 16 bytes have checksum", []),
        ("load", ["a", "unknown"], 0, "load: KeyError: 'unknown'", ["a", "unknown"]),
        ("compare", ["a", "b"], 0, "2 weights are not what was sent: a, b", []),
    ],
)
def test_an_order_is_done_or_its_fault_answered_and_nothing_raised(
    work: Work, names: list[str], wrong: int, fault: str | None, loaded: list[str]
) -> None:
    model = Rank(sent())
    order, *memory = ordered(work, names, torch.arange(16).byte(), wrong)
    load(model, [(order_text(order), torch.empty(0))])
    found = Answer.read(memory[1].tensor)
    assert found is not None
    assert found.key == "key"
    assert found.fault is None if fault is None else fault in (found.fault or "")
    assert model.loaded == loaded


def order_text(order: Order) -> str:
    """The name under which SGLang hands it over."""
    ((text, _),) = pickle.loads(base64.b64decode(order.serialized()))
    return str(text)


def test_an_order_whose_sender_is_gone_raises_nothing() -> None:
    order, payload, answer = ordered("load", ["a"], torch.arange(16).byte())
    payload.close()
    model = Rank(sent())
    load(model, [(order_text(order), torch.empty(0))])
    found = Answer.read(answer.tensor)
    assert found is not None
    assert "has ended" in (found.fault or "")
    answer.close()
    load(model, [(order_text(order), torch.empty(0))])
    assert model.loaded == []
