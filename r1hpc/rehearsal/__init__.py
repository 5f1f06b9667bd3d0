"""A private Slurm on one host to rehearse the whole pipeline on, and what breaks it on purpose.

`RehearsalCluster.up(ClusterSpec(directory=..., nodes=4))` starts it; `python -m r1hpc.rehearsal` does so from a shell.
"""
