"""The command line of each process of an engine: a pure function of the configuration, the place and the version."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r1hpc.config import Config
from r1hpc.errors import R1hpcError
from r1hpc.rollout.placement import EngineProcess, bracketed
from r1hpc.rollout.versions import Capabilities

WEIGHT_LOADER: Final = "r1hpc.sync.engine_loader.load"
"""What takes the weights that a run sends its engines, inside them; by name, as SGLang wants it."""

Value = object
"""Of an argument: a number, a text, true for a bare switch, a list or a mapping."""

_FORCED: Final[Mapping[str, str]] = {
    "skip_server_warmup": "the weights that an engine starts with are replaced before it may generate",
    "enable_metrics": "the run's progress is read from them",
    "incremental_streaming_output": "each chunk of a stream would repeat the whole response",
    "disable_shared_experts_fusion": "updates of fused shared experts are untested, and a wrong one is silent",
    "enforce_disable_flashinfer_allreduce_fusion": "its workspace is multicast memory, which some machines forbid",
}
"""Switches that are always on where they stand at all, and why."""

_NEGATABLE: Final = frozenset(
    {
        "dcp_replicate_q_proj",
        "dllm_fdfo",
        "enable_decoder_swa_bounded_replay",
        "enable_dsa_fused_indexer",
        "enable_fused_qk_norm_rope",
        "enable_tf32_matmul",
        "enable_tp_lm_head_all_to_all",
        "experts_shared_outer_loras",
        "lora_strict_loading",
        "mm_enable_dp_encoder",
        "ple_offload_embedding",
        "speculative_enable_w4a4_mxfp4_megamoe",
    }
)
"""Switches that SGLang also takes as --no-NAME; all others are off when they are left out."""

_FLAGS: Final[Mapping[str, str]] = {
    "fp8_gemm_runner_backend": "--fp8-gemm-backend",
    "fp4_gemm_runner_backend": "--fp4-gemm-backend",
    "ep_join_mode": "--elastic-ep-join-mode",
    "ep_join_rank_offset": "--elastic-ep-join-rank-offset",
}
"""Arguments that SGLang's command line calls otherwise than SGLang itself."""


class EngineArgumentError(R1hpcError):
    """A value under `sglang:` that an engine cannot be started with."""


@dataclass(frozen=True)
class ServerArguments:
    """SGLang's server arguments by name, in the order of the command line."""

    values: Mapping[str, Value]

    def argv(self, python: str = sys.executable, key_file: Path | None = None) -> list[str]:
        """The command that starts the server; with `key_file`, the one that answers only who knows the key in it."""
        words = [word for name, value in self.values.items() for word in _words(name, value)]
        program = ["sglang.launch_server"] if key_file is None else ["r1hpc.rollout.guarded_server", str(key_file)]
        return [python, "-m", *program, *words]


def server_arguments(config: Config, process: EngineProcess, known: Capabilities) -> ServerArguments:
    """Arguments of one process of an engine. Raises EngineArgumentError for a value that r1hpc has to decide."""
    values = {
        **_place(config, process),
        **_parallel(config, process, known),
        **_memory(config),
        **_device(config, process),
        "random_seed": config.run.seed + process.engine,
        "skip_server_warmup": True,
        "enable_metrics": True,
        "incremental_streaming_output": True,
        # Else a line for each request: the reason of a failure would drown.
        "log_level_http": "warning",
        "disable_shared_experts_fusion": True,
        "custom_weight_loader": [WEIGHT_LOADER],
    }
    passed = config.sglang.passed_through
    _refuse_forced(values, passed)
    return ServerArguments(values | passed)


def boot_checkpoint(config: Config) -> str:
    """The Hugging Face directory that an engine starts from.

    SGLang has no fp8 on CPU, so there the cast copy is taken where the configuration names one.
    """
    if config.hosts.device == "cpu":
        return config.ckpt.bf16_checkpoint or config.ckpt.hf_checkpoint
    return config.ckpt.hf_checkpoint


def _place(config: Config, process: EngineProcess) -> dict[str, Value]:
    return {
        "model_path": boot_checkpoint(config),
        "host": process.host,
        "port": process.http_port,
        "nccl_port": process.nccl_port,
        "nnodes": process.num_nodes,
        "node_rank": process.node_rank,
        "dist_init_addr": f"{bracketed(process.meeting_host)}:{process.rendezvous_port}",
    }


def _parallel(config: Config, process: EngineProcess, known: Capabilities) -> dict[str, Value]:
    sglang = config.sglang
    values: dict[str, Value] = {"tp_size": process.num_gpus}
    if sglang.ep_size > 1:
        values["ep_size"] = sglang.ep_size
    if sglang.enable_dp_attention and known.attn_dp_size:
        values["attn_dp_size"] = sglang.dp_size
    elif sglang.enable_dp_attention:
        values |= {"dp_size": sglang.dp_size, "enable_dp_attention": True}
    if sglang.enable_dp_lm_head:
        values["enable_dp_lm_head"] = True
    if sglang.moe_dense_tp_size is not None:
        values["moe_dense_tp_size"] = sglang.moe_dense_tp_size
    if sglang.moe_a2a_backend != "none":
        values["moe_a2a_backend"] = sglang.moe_a2a_backend
    if sglang.moe_a2a_backend == "deepep":
        values["deepep_mode"] = sglang.deepep_mode
    return values


def _memory(config: Config) -> dict[str, Value]:
    sglang = config.sglang
    values: dict[str, Value] = {"mem_fraction_static": sglang.mem_fraction_static}
    if sglang.kv_cache_dtype != "auto":
        values["kv_cache_dtype"] = sglang.kv_cache_dtype
    if sglang.disable_radix_cache:
        values["disable_radix_cache"] = True
    return values


def _device(config: Config, process: EngineProcess) -> dict[str, Value]:
    if config.hosts.device == "cpu":
        return {
            "device": "cpu",
            # In bf16 a rounding can flip a route, and then log-probs differ by more than any test can allow.
            "dtype": "float32",
            "attention_backend": "torch_native",
            "disable_overlap_schedule": True,
            "sleep_on_idle": True,
        }
    values: dict[str, Value] = {
        "device": "cuda",
        "base_gpu_id": process.base_gpu_id,
        "enable_memory_saver": True,
        # A draft model's weights are in no update, so a release must not discard them.
        "enable_draft_weights_cpu_backup": True,
        # Otherwise SGLang reserves up to 1 GiB of GPU 0 for pictures.
        "mm_feature_transport": "cpu",
    }
    if not config.sglang.enable_dp_attention:
        # An idle scheduler polls, and takes a core from host Adam. Those of several attention ranks wait for each other
        # before each request, of a sync too; there one that sleeps in its own poll would hold up all for a second.
        values["sleep_on_idle"] = True
    if process.num_gpus > 1:
        # SGLang turns it on by itself for this model on Hopper.
        values["enforce_disable_flashinfer_allreduce_fusion"] = True
    return values


def _refuse_forced(values: Mapping[str, Value], passed: Mapping[str, Value]) -> None:
    for name, value in passed.items():
        if name in _FORCED and name in values and value is not True:
            raise EngineArgumentError(
                f"sglang.{name} = {json.dumps(value, default=str)}: it is always true, because {_FORCED[name]};"
                " leave it out"
            )


def _words(name: str, value: Value) -> Iterator[str]:
    """An argument as its words: true is the bare switch, null nothing, a list several words, a mapping JSON."""
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    if value is None or (value is False and name not in _NEGATABLE):
        return
    if value is False:
        yield "--no-" + name.replace("_", "-")
    elif value is True:
        yield flag
    elif isinstance(value, list | tuple):
        yield from (flag, *(_word(item) for item in value))
    else:
        yield from (flag, _word(value))


def _word(value: Value) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)
