"""Where a run stands and why it stopped, read from its directory: no torch, and no Slurm where there is none."""
