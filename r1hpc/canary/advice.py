"""What to try when the canary failed: what breaks most is left out first, one thing at a time. Loads no torch."""

from __future__ import annotations

from r1hpc.config import Config


def ladder(config: Config) -> tuple[str, ...]:
    """The settings to change, in the order of trying; those that are not in use are left out."""
    sglang, megatron = config.sglang, config.megatron
    rungs = []
    if sglang.passed_through.get("speculative_algorithm"):
        rungs.append("without multi-token prediction: leave sglang.speculative_* out")
    if config.hosts.device == "cuda" and not sglang.passed_through.get("disable_cuda_graph"):
        rungs.append("without CUDA graphs: sglang.disable_cuda_graph: true")
    if sglang.moe_a2a_backend == "deepep":
        rungs.append("engines without DeepEP: sglang.moe_a2a_backend: none")
    if megatron.moe_flex_dispatcher_backend == "deepep":
        rungs.append(
            "trainers without DeepEP: megatron.moe_token_dispatcher_type: alltoall, without moe_flex_dispatcher_backend"
        )
    return tuple(rungs)


def advice(config: Config) -> str:
    """The same as text."""
    rungs = ladder(config)
    if not rungs:
        return "nothing is left to be switched off: the logs say more"
    lines = [f"  {number}. {rung}" for number, rung in enumerate(rungs, 1)]
    return "\n".join(["try one after another, each on top of those before:", *lines])
