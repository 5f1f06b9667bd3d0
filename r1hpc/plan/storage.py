"""What lies on disk, Hugging Face checkpoints, the converted one, commits, and what cast and convert read and write."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import ADAM_BYTES
from r1hpc.plan.conversion import ConversionPlan, make_conversion
from r1hpc.plan.gpu_memory import param_bytes
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
class StoragePlan:
    """Bytes on the shared file system."""

    disk: tuple[MemoryPart, ...]
    weight_bytes: int
    """Weights of the main model in bf16, router biases included."""
    commit_bytes: int
    """One full commit: weights, fp32 masters and both moments."""
    source_bytes: int
    """The Hugging Face checkpoint as it is fetched."""
    cast_bytes: int
    """Its bf16 copy, which the cast stage writes; 0 where there is none."""
    convert_read_bytes: int
    """Read by the convert stage: all that the copy or the source stores."""
    converted_bytes: int
    """Written by the convert stage: main model and prediction layers, whose embedding and head are those of the main
    model; 0 where there is none."""
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
    source = total_bytes(modules.checkpoint, shape.fp8_block)
    cast = total_bytes(modules.checkpoint, None) if config.ckpt.bf16_checkpoint else 0
    converted = total_bytes((*modules.main, *modules.mtp), None) if config.ckpt.ref_load else 0
    keep = config.ckpt.keep
    return StoragePlan(
        disk=parts(
            MemoryPart("Hugging Face checkpoint", source, "ckpt.hf_checkpoint"),
            MemoryPart("bf16 copy", cast, "ckpt.bf16_checkpoint"),
            MemoryPart("converted", converted, "ckpt.ref_load"),
            MemoryPart("commits kept", keep * commit, f"ckpt.keep = {keep}"),
            MemoryPart("commit being written", commit, "an older one goes only when it is valid"),
        ),
        weight_bytes=total_bytes(modules.main, None),
        commit_bytes=commit,
        source_bytes=source,
        cast_bytes=cast,
        convert_read_bytes=(cast or source) if converted else 0,
        converted_bytes=converted,
        tensors=_tensors(modules),
        conversion=make_conversion(config, shape, modules),
    )


def _tensors(modules: ModelModules) -> TensorCounts:
    main = sum(count * module.tensors for module, count in modules.main)
    everything = sum(count * module.tensors for module, count in modules.checkpoint)
    quantized = sum(count * len(module.matrices) for module, count in modules.checkpoint if module.quantized)
    return TensorCounts(main=main, mtp=everything - main, quantized=quantized)
