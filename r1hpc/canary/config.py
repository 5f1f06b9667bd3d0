"""The canary's configuration: the run's own, but for what a few layers and a few minutes ask for. Loads no torch."""

from __future__ import annotations

from math import gcd

from r1hpc.canary.layers import LayerCut
from r1hpc.canary.reward import REWARD
from r1hpc.config import Config
from r1hpc.config.run_time import DebugConfig
from r1hpc.config.training import EvalConfig, OptimizerConfig, RolloutConfig
from r1hpc.plan.batches import steps_per_rollout
from r1hpc.rundir import CanaryDir

ITERATIONS = 2
"""One with the weights of the start, one with those of an update, after everything was released and taken again."""
MAX_RESPONSE = 64
"""Tokens."""
MAX_LR = 1e-6
"""R1's. A larger rate moves weights off the grid of fp8, and what their rounding then does to a few layers is as large
as what the canary looks for: 0.2 in the log-probs of a tiny model after one step at 1e-3, 3e-6 before it."""
GROUP = 2
"""Samples of a prompt: one has no advantage."""


def canary_config(config: Config, layers: LayerCut, place: CanaryDir) -> Config:
    """The configuration of the canary of a run. Everything that is not named here is the run's."""
    on_cpu = config.hosts.device == "cpu"
    perf = {"decoder_first_pipeline_num_layers": layers.first, "decoder_last_pipeline_num_layers": layers.last}
    ckpt = {
        "hf_checkpoint": str(place.model),
        "hf_config": None,
        # Conversion reads fp8; only engines without fp8 start from the cast.
        "bf16_checkpoint": str(place.bf16) if on_cpu and config.ckpt.bf16_checkpoint is not None else None,
        "ref_load": str(place.torch_dist),
        "load": None,
        "save": None,
    }
    convert = {
        "num_tasks": 1,
        "pipeline_model_parallel_size": config.perf.pipeline_model_parallel_size,
        "balance": "bytes",
        **perf,
    }
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"root": str(place.root), "name": place.run.root.name}),
            "ckpt": config.ckpt.model_copy(update=ckpt),
            "rollout": _rollout(config),
            "eval": EvalConfig(),
            "perf": config.perf.model_copy(update=perf),
            # The log-probs before the update are what the engines' are compared with.
            "grpo": config.grpo.model_copy(update={"use_rollout_logprobs": False}),
            "optimizer": _optimizer(config),
            "sync": config.sync.model_copy(update={"full_check_interval": 1}),
            "debug": DebugConfig(),
            "convert": config.convert.model_copy(update=convert),
        }
    )


def _optimizer(config: Config) -> OptimizerConfig:
    optimizer = config.optimizer
    lr = min(MAX_LR, optimizer.lr)
    return optimizer.model_copy(update={"lr": lr, "min_lr": min(lr, optimizer.min_lr), "lr_warmup_iters": 0})


def _rollout(config: Config) -> RolloutConfig:
    rollout = config.rollout
    samples = min(GROUP, rollout.n_samples_per_prompt)
    change = {
        "num_rollout": ITERATIONS,
        "rollout_batch_size": _prompts(config, samples),
        "n_samples_per_prompt": samples,
        "rollout_max_response_len": min(MAX_RESPONSE, rollout.rollout_max_response_len),
        "num_steps_per_rollout": steps_per_rollout(config),
        "global_batch_size": None,
        "over_sampling_batch_size": None,
        "dynamic_sampling_filter_path": None,
        "recycle": "none",
        "rm_type": None,
        "custom_rm_path": REWARD,
        "group_rm": False,
    }
    return rollout.model_copy(update=change)


def _prompts(config: Config, samples: int) -> int:
    """The fewest that every attention rank of every engine has one of, and that all ranks train on in every step."""
    perf, sglang = config.perf, config.sglang
    world = config.hosts.num_nodes * config.hosts.gpus_per_node
    engines = world // sglang.rollout_num_gpus_per_engine
    stage = perf.tensor_model_parallel_size * perf.context_parallel_size * perf.pipeline_model_parallel_size
    shares = steps_per_rollout(config) * (world // stage)
    unit = shares // gcd(shares, samples)
    served = engines * (sglang.dp_size if sglang.enable_dp_attention else 1)
    return -(-served // unit) * unit
