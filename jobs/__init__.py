"""What runs inside a Slurm allocation, one file a job. The only code that reads SLURM_* variables."""
