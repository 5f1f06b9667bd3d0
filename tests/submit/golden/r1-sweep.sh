#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --comment=r1hpc=deepseek-r1-0a1b2c
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --job-name=r1hpc-deepseek-r1-0a1b2c-train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/deepseek-r1/logs/train-%A_%a.log
#SBATCH --requeue
#SBATCH --signal=USR1@1020
#SBATCH --time=1440

# setup
export R1HPC_RUN_DIR="$(sed -n $((${SLURM_ARRAY_TASK_ID:-0} + 1))p /runs/deepseek-r1/sweep.txt)"
export R1HPC_HOME=HOME
export R1HPC_PYTHON=PYTHON
export PYTHONPATH=HOME${PYTHONPATH:+:$PYTHONPATH}
export SUBMITIT_PREEMPT_SIGNAL=RTMAX
unset SLURM_EXPORT_ENV
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
. HOME/sbatch/hooks.sh
r1hpc_begin
r1hpc_preflight 300 --mpi=pmi2 --nodes=16 --ntasks=16

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/deepseek-r1/submitit/train/20260102T030405/%A_%a_%t_log.out --output /runs/deepseek-r1/logs/train-%A_%a-%t.log --open-mode=append --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 --cpu-bind=none --nodes=16 --ntasks=16 sh -c "$r1hpc_signals_later" task PYTHON -u -m submitit.core._submit /runs/deepseek-r1/submitit/train/20260102T030405


# teardown
rc=$?
r1hpc_end $rc
exit $rc
