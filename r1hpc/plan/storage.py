"""What lies on disk: Hugging Face checkpoints, the converted one, commits; and the slices of the conversion."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import ADAM_BYTES
from r1hpc.plan.gpu_memory import param_bytes
from r1hpc.plan.layers import dense_layers_in, split_layers
from r1hpc.plan.memory import MemoryPart, parts
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import FP32, ModelModules, total_bytes, total_parameters


@dataclass(frozen=True)
class TensorCounts:
    """Tensors of the Hugging Face checkpoint."""

    main: int
    mtp: int
    """Of the multi-token-prediction layers, their copies of embedding and head included."""
    quantized: int
    """Those in fp8; each has a scale tensor beside it."""

    @property
    def keys(self) -> int:
        """Keys of the checkpoint's index: weights and scales."""
        return self.main + self.mtp + self.quantized


@dataclass(frozen=True)
class ConversionPlan:
    """The slices that the convert stage writes."""

    slices: int
    layers: tuple[int, ...]
    """Of each pipeline slice."""
    slice_bytes: tuple[int, ...]
    """bf16 weights of one expert slice of each pipeline slice."""
    last_slice_bytes_with_mtp: int


@dataclass(frozen=True)
class StoragePlan:
    """Bytes on the shared file system."""

    disk: tuple[MemoryPart, ...]
    weight_bytes: int
    """Weights of the main model in bf16, router biases included: what the conversion writes."""
    commit_bytes: int
    """One full commit: weights, fp32 masters and both moments."""
    cast_io_bytes: int
    """Read and written by the cast stage; 0 where there is none."""
    convert_io_bytes: int
    """Read and written by the convert stage."""
    tensors: TensorCounts
    conversion: ConversionPlan

    @property
    def total_bytes(self) -> int:
        """All that must fit at once."""
        return sum(part.bytes for part in self.disk)


def make_storage(config: Config, shape: ModelShape, modules: ModelModules) -> StoragePlan:
    """The disk plan of a run."""
    parameters = total_parameters(modules.main)
    biases = FP32 * sum(count * sum(module.biases) for module, count in modules.main)
    commit = (param_bytes(config) + ADAM_BYTES) * parameters + biases
    weights = total_bytes(modules.main, None)
    source = total_bytes(modules.checkpoint, shape.fp8_block)
    cast = total_bytes(modules.checkpoint, None) if config.ckpt.bf16_checkpoint else 0
    converted = weights if config.ckpt.ref_load else 0
    keep = config.ckpt.keep
    return StoragePlan(
        disk=parts(
            MemoryPart("Hugging Face checkpoint", source, "ckpt.hf_checkpoint"),
            MemoryPart("bf16 copy", cast, "ckpt.bf16_checkpoint"),
            MemoryPart("converted", converted, "ckpt.ref_load"),
            MemoryPart("commits kept", keep * commit, f"ckpt.keep = {keep}"),
            MemoryPart("commit being written", commit, "an older one goes only when it is valid"),
        ),
        weight_bytes=weights,
        commit_bytes=commit,
        cast_io_bytes=source + cast if cast else 0,
        convert_io_bytes=(total_bytes(modules.main, None if cast else shape.fp8_block)) + converted,
        tensors=_tensors(modules),
        conversion=_conversion(config, shape, modules),
    )


def _tensors(modules: ModelModules) -> TensorCounts:
    main = sum(count * module.tensors for module, count in modules.main)
    everything = sum(count * module.tensors for module, count in modules.checkpoint)
    quantized = sum(count * len(module.matrices) for module, count in modules.checkpoint if module.quantized)
    return TensorCounts(main=main, mtp=everything - main, quantized=quantized)


def _conversion(config: Config, shape: ModelShape, modules: ModelModules) -> ConversionPlan:
    convert = config.convert
    layers = split_layers(
        shape.num_layers,
        convert.pipeline_model_parallel_size,
        convert.decoder_first_pipeline_num_layers,
        convert.decoder_last_pipeline_num_layers,
    )
    share = shape.num_experts // convert.expert_model_parallel_size

    def moe_layer_bytes() -> int:
        return sum((share if m is modules.expert else n) * m.weight_bytes(None) for m, n in modules.moe_layer)

    def slice_bytes(index: int) -> int:
        dense = dense_layers_in(sum(layers[:index]), layers[index], shape.num_dense_layers)
        dense_layer = sum(n * m.weight_bytes(None) for m, n in modules.dense_layer)
        ends = modules.embedding.weight_bytes(None) if index == 0 else 0
        if index == len(layers) - 1:
            ends += modules.head.weight_bytes(None) + modules.final_norm.weight_bytes(None)
        return dense * dense_layer + (layers[index] - dense) * moe_layer_bytes() + ends

    each = tuple(slice_bytes(index) for index in range(len(layers)))
    mtp_layer = moe_layer_bytes() + modules.mtp_projection.weight_bytes(None) + modules.embedding.weight_bytes(None)
    return ConversionPlan(
        slices=len(layers) * convert.expert_model_parallel_size,
        layers=layers,
        slice_bytes=each,
        last_slice_bytes_with_mtp=each[-1] + shape.num_mtp_layers * mtp_layer,
    )
