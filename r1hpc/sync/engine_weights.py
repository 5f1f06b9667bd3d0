"""The weights of a DeepSeek-V3 inside SGLang: forget them, find those not written, compare them with what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from r1hpc.checkpoint.fp8 import dequantize
from r1hpc.sync.encoding import SCALE

_NOT_SENT = (".k_scale", ".v_scale")
"""Parameters of SGLang's fp8 attention that no checkpoint has. They are 1; a release of memory loses them, and then
attention divides by whatever lies there."""

_FP8_NAN = 0x7F

_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.(.*)")


def forget(model: nn.Module) -> None:
    """Make every weight NaN that an update has to bring, and set those that none brings."""
    for name, parameter in model.named_parameters():
        if name.endswith(_NOT_SENT):
            parameter.data.fill_(1)
        elif _is_fp8(parameter):
            parameter.data.view(torch.uint8).fill_(_FP8_NAN)
        elif parameter.is_floating_point():
            parameter.data.fill_(torch.nan)


def never_written(model: nn.Module) -> list[str]:
    """Names of SGLang's parameters in which something is NaN."""
    names, flags = [], []
    for name, parameter in model.named_parameters():
        if _is_fp8(parameter):
            names.append(name)
            flags.append(((parameter.view(torch.uint8) & _FP8_NAN) == _FP8_NAN).any())
        elif parameter.is_floating_point():
            names.append(name)
            flags.append(parameter.isnan().any())
    # One answer from the device, not one a parameter.
    return [name for name, flag in zip(names, torch.stack(flags).tolist(), strict=True) if flag]


def compare(model: nn.Module, sent: Mapping[str, Tensor]) -> list[str]:
    """Names of the Hugging Face tensors, of those sent, that SGLang holds otherwise on this rank, or nowhere.

    Includes the two halves of kv_b_proj that it makes for its absorbed attention. Experts of other ranks are left out.
    """
    live = Live(model)
    wrong = []
    for name, tensor in sent.items():
        places = list(live.places(name, tensor))
        if (live.expects(name) and not places) or not all(_holds(*place) for place in places):
            wrong.append(name)
    for name in sent:
        if name.endswith(".kv_b_proj.weight") and not _absorbed_alike(model, name, sent):
            wrong.append(f"{name} (as w_kc and w_vc)")
    return wrong


@dataclass(frozen=True)
class Expert:
    """A tensor of a routed expert, by its Hugging Face name."""

    module: str
    number: int
    projection: str
    what: str
    """weight or weight_scale_inv."""

    @classmethod
    def of(cls, name: str) -> Expert | None:
        match = _EXPERT.fullmatch(name)
        return cls(match[1], int(match[2]), match[3], match[4]) if match else None

    def is_of(self, other: Expert) -> bool:
        """Whether both are tensors of the same expert."""
        return (self.module, self.number) == (other.module, other.number)


class Live:
    """Where SGLang keeps what Hugging Face names."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._served: dict[str, range] = {}

    def expects(self, name: str) -> bool:
        """Whether this rank has to hold it, or a part of it."""
        expert = Expert.of(name)
        return expert is None or self._local(expert) is not None

    def places(self, name: str, tensor: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The part of a parameter that holds the tensor, beside the tensor."""
        if name in self._parameters:
            yield self._parameters[name], tensor
        elif expert := Expert.of(name):
            if (place := self.expert_place(expert)) is not None:
                yield place, tensor
        elif (fused := self._named(name, "q_a_proj", "fused_qkv_a_proj_with_mqa")) is not None:
            yield fused[: len(tensor)], tensor
        elif (fused := self._named(name, "kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa")) is not None:
            yield fused[-len(tensor) :], tensor
        elif (fused := self._named(name, "gate_proj", "gate_up_proj")) is not None:
            yield fused.chunk(2)[0], tensor
        elif (fused := self._named(name, "up_proj", "gate_up_proj")) is not None:
            yield fused.chunk(2)[1], tensor

    def _named(self, name: str, projection: str, fused: str) -> Tensor | None:
        return self._parameters.get(name.replace(f".{projection}.", f".{fused}."))

    def expert_place(self, expert: Expert) -> Tensor | None:
        """The part of a parameter that holds this tensor of an expert, or what this rank has of it.

        null where another rank has the expert.
        """
        local = self._local(expert)
        joined = "w2" if expert.projection == "down" else "w13"
        parameter = self._parameters.get(f"{expert.module}.{joined}_{expert.what}")
        if local is None or parameter is None:
            return None
        matrix = parameter.data[local]
        return matrix if expert.projection == "down" else matrix.chunk(2)[expert.projection == "up"]

    def _local(self, expert: Expert) -> int | None:
        """Its place among the experts of this rank; null where another rank has it."""
        if expert.module not in self._served:
            module = self._model.get_submodule(expert.module)
            count, rank = int(module.num_local_experts), int(module.moe_ep_rank)  # type: ignore[arg-type]
            self._served[expert.module] = range(rank * count, (rank + 1) * count)
        served = self._served[expert.module]
        return expert.number - served.start if expert.number in served else None


def _absorbed_alike(model: nn.Module, name: str, sent: Mapping[str, Tensor]) -> bool:
    """Whether w_kc [heads, nope, latent] and w_vc [heads, latent, v] are the kv_b_proj that was sent."""
    attention = model.get_submodule(name.removesuffix(".kv_b_proj.weight"))
    w_kc, w_vc = attention.w_kc, attention.w_vc
    if not isinstance(w_kc, Tensor) or not isinstance(w_vc, Tensor):
        return True  # it computes with kv_b_proj itself
    weight = sent[name]
    if _is_fp8(weight):
        scales = sent[name.removesuffix("weight") + "weight" + SCALE]
        weight = dequantize(weight, scales, name=name)
    nope, v_head = w_kc.shape[1], w_vc.shape[2]
    heads = weight.view(-1, nope + v_head, weight.shape[1])
    return _holds(w_kc, heads[:, :nope]) and _holds(w_vc, heads[:, nope:].transpose(1, 2))


def _holds(live: Tensor, whole: Tensor) -> bool:
    """Whether `live` is `whole`, or the part of it that tensor parallelism gives some rank, to the bit.

    Which rank's is not asked: SGLang cuts attention, dense layers and experts by different ranks. It pads vocabularies.
    """
    parts = [whole]
    for axis, size in enumerate(live.shape):
        if size >= whole.shape[axis]:
            live = live.narrow(axis, 0, whole.shape[axis])
        else:
            parts = [cut for part in parts for cut in torch.split(part, size, axis)]
    return any(_same_bits(live.narrow(0, 0, len(part)), part) for part in parts)


def _same_bits(live: Tensor, part: Tensor) -> bool:
    if live.shape != part.shape:
        return False
    one, other = live.contiguous(), part.to(live.dtype).contiguous()
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _is_fp8(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float8_e4m3fn
