#!/bin/bash
# The cast stage by hand: sbatch [--array=0-15] sbatch/cast.sh [CONFIG] [SUBMIT-OPTION...]   (from the checkout)
# One array task casts one slice of the safetensors files; the number of tasks is cast.num_tasks of the configuration.
#SBATCH --job-name=r1hpc-cast
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

export R1HPC_HOME=${SLURM_SUBMIT_DIR:?run this with sbatch, from the checkout}
export R1HPC_PYTHON=${R1HPC_PYTHON:-$R1HPC_HOME/.venv/bin/python}
export PYTHONPATH=$R1HPC_HOME${PYTHONPATH:+:$PYTHONPATH}
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# It begins the grace of a preemption: a script that died of it would count as failed, and not come back.
trap : TERM
config=${1:-$R1HPC_HOME/configs/r1.yaml}
shift || true
srun "$R1HPC_PYTHON" -m jobs.cast "$config" "$@"
