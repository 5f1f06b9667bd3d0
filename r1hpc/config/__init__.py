"""The typed configuration. Loads no torch: a login node reads and checks a file in well under a second."""

from r1hpc.config.dump import config_hash, dump_config
from r1hpc.config.load import LoadedConfig, load_config
from r1hpc.config.schema import Config

__all__ = ["Config", "LoadedConfig", "config_hash", "dump_config", "load_config"]
