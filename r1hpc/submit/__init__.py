"""Submitting a run: stages, their sbatch texts, their dependencies. Loads no torch; a login node is enough."""
