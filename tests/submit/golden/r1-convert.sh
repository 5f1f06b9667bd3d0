#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --comment=r1hpc=deepseek-r1-0a1b2c
#SBATCH --cpus-per-task=32
#SBATCH --dependency=afterok:41
#SBATCH --job-name=r1hpc-deepseek-r1-0a1b2c-convert
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=262144M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/deepseek-r1/logs/convert-%A_%a.log
#SBATCH --requeue
#SBATCH --signal=URG@60
#SBATCH --time=480

# setup
export R1HPC_RUN_DIR=/runs/deepseek-r1
export R1HPC_HOME=HOME
export R1HPC_PYTHON=PYTHON
export PYTHONPATH=HOME${PYTHONPATH:+:$PYTHONPATH}
export SUBMITIT_PREEMPT_SIGNAL=RTMAX
unset SLURM_EXPORT_ENV
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
. HOME/sbatch/hooks.sh
r1hpc_element_begin

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/deepseek-r1/submitit/convert/20260102T030405/%A_%a_%t_log.out --output /runs/deepseek-r1/logs/convert-%A_%a.log --open-mode=append sh -c 'trap "" USR1 TERM; exec "$@"' task PYTHON -u -m submitit.core._submit /runs/deepseek-r1/submitit/convert/20260102T030405


# teardown
rc=$?
r1hpc_element_end $rc
exit $rc
