"""The environment of an engine's processes: the actor's, without what would harm them, with what SGLang needs."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from r1hpc.config import Config
from r1hpc.rollout.placement import EngineProcess

CPU_SITE: Final = Path(__file__).parent / "cpu_site"
"""Packages that stand in for what SGLang lacks on a CPU; on the path of its processes alone."""
GPU_SITE: Final = Path(__file__).parent / "gpu_site"
"""A package that stands in for megatron-core, which harms an engine on a GPU; on the path of its processes alone."""

_HARMFUL: Final = frozenset(
    {
        # Expandable segments break the memory saver.
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        # The trainer's own memory saver: SGLang preloads its own.
        "LD_PRELOAD",
        # Log-probs must be those of the distribution that was sampled from, divided by the temperature.
        "SGLANG_RETURN_ORIGINAL_LOGPROB",
        # They have other programs answer HTTP than the one that asks for the key.
        "SGLANG_RUST_SERVER",
        "SGLANG_HTTP_SERVER_APP_PATH",
        # Of the trainer's process groups.
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    }
)
_HARMFUL_PREFIXES: Final = ("TMS_", "TORCHELASTIC_")

_EVERYWHERE: Final[Mapping[str, str]] = {
    # /health then says "alive" without queueing a token behind thousands of others.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false",
    # GPUs of an engine may differ in free memory while trainers sleep on them.
    "SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK": "false",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_CUDA: Final[Mapping[str, str]] = {
    # Compiling every kernel shape ahead takes longer than the rollouts that meet them.
    "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "false",
    "SGLANG_JIT_DEEPGEMM_FAST_WARMUP": "true",
    # Without it a release of CUDA graphs is accepted and frees nothing.
    "SGLANG_MEMORY_SAVER_CUDA_GRAPH": "true",
}
_CPU: Final[Mapping[str, str]] = {
    "SGLANG_USE_CPU_ENGINE": "1",
    # Compiling costs seconds at the first request, and saves none on tiny models.
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


def engine_environment(
    config: Config, process: EngineProcess, inherited: Mapping[str, str], scratch: Path
) -> dict[str, str]:
    """The environment of one process of an engine; the marks of the run (R1HPC_*) stay.

    `scratch` takes its temporary files: SGLang leaves its sockets behind. A short path: Unix sockets end at 107.
    """
    kept = {name: value for name, value in inherited.items() if not _is_harmful(name)}
    own = {**_EVERYWHERE, **(_CPU if config.hosts.device == "cpu" else _CUDA), "TMPDIR": str(scratch)}
    if config.hosts.device == "cpu":
        # SGLang wants cores named for each rank of an engine, and without AMX binds nothing to them.
        own["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * process.num_gpus)
    site = CPU_SITE if config.hosts.device == "cpu" else GPU_SITE
    own["PYTHONPATH"] = ":".join(filter(None, [str(site), kept.get("PYTHONPATH")]))
    if interface := group_interface(process.meeting_host, config.hosts.fabric_interface):
        own |= {"NCCL_SOCKET_IFNAME": interface, "GLOO_SOCKET_IFNAME": interface}
    return kept | own


def _is_harmful(name: str) -> bool:
    return name in _HARMFUL or name.startswith(_HARMFUL_PREFIXES) or name.lower().endswith("_proxy")


def group_interface(address: str, fabric_interface: str | None) -> str | None:
    """The network interface of process groups that meet at `address`; None leaves the choice to NCCL and gloo.

    Gloo takes the address that the host's name resolves to, which other hosts may not reach.
    """
    return "lo" if is_loopback(address) else fabric_interface


def is_loopback(address: str) -> bool:
    """Whether what listens at `address` is reached from its own host only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
