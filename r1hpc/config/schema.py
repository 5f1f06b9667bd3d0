"""The whole configuration of a run."""

from __future__ import annotations

from pydantic import Field

from r1hpc.config.base import Section
from r1hpc.config.cluster import CastConfig, ConvertConfig, HostsConfig, RunConfig, SlurmConfig
from r1hpc.config.engines import MegatronConfig, SglangConfig
from r1hpc.config.run_time import DebugConfig, SyncConfig
from r1hpc.config.training import CkptConfig, EvalConfig, GrpoConfig, OptimizerConfig, PerfConfig, RolloutConfig


class Config(Section):
    """One YAML file: the recipe's argument groups under their own names, and the machine that carries them out."""

    run: RunConfig
    hosts: HostsConfig
    slurm: SlurmConfig = Field(default_factory=SlurmConfig)
    ckpt: CkptConfig
    rollout: RolloutConfig
    eval: EvalConfig = Field(default_factory=EvalConfig)
    perf: PerfConfig = Field(default_factory=PerfConfig)
    grpo: GrpoConfig = Field(default_factory=GrpoConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    sglang: SglangConfig = Field(default_factory=SglangConfig)
    megatron: MegatronConfig = Field(default_factory=MegatronConfig)
    sync: SyncConfig = Field(default_factory=SyncConfig)
    debug: DebugConfig = Field(default_factory=DebugConfig)
    cast: CastConfig = Field(default_factory=CastConfig)
    convert: ConvertConfig = Field(default_factory=ConvertConfig)
