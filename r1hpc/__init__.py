"""SLURM-native reinforcement learning of DeepSeek-R1: one YAML file to a run that heals itself."""

__version__ = "0.1.0"
