#!/bin/bash

# Parameters
#SBATCH --comment=r1hpc=rehearsal-0a1b2c
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --job-name=r1hpc-rehearsal-0a1b2c-preflight
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=0
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/rehearsal/logs/preflight-%j.log
#SBATCH --requeue
#SBATCH --signal=USR1@1020
#SBATCH --time=60

# setup
export R1HPC_RUN_DIR=/runs/rehearsal
export R1HPC_HOME=HOME
export R1HPC_PYTHON=PYTHON
export PYTHONPATH=HOME${PYTHONPATH:+:$PYTHONPATH}
export SUBMITIT_PREEMPT_SIGNAL=RTMAX
unset SLURM_EXPORT_ENV
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
. HOME/sbatch/hooks.sh
r1hpc_begin
r1hpc_preflight 120 --mpi=pmi2 --nodes=4 --ntasks=4

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/rehearsal/submitit/preflight/20260102T030405/%j_%t_log.out --output /runs/rehearsal/logs/preflight-%j-%t.log --open-mode=append --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 --cpu-bind=none --nodes=4 --ntasks=4 sh -c "$r1hpc_signals_later" task PYTHON -u -m submitit.core._submit /runs/rehearsal/submitit/preflight/20260102T030405


# teardown
rc=$?
r1hpc_end $rc
exit $rc
