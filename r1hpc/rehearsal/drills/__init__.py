"""Drills: a real run on a private Slurm, something of it broken at a chosen moment, and what must hold afterwards."""
