#!/bin/bash

# Parameters
#SBATCH --account=llm
#SBATCH --comment='r1hpc=deepseek-r1-0a1b2c project 7'
#SBATCH --constraint='h100&ib'
#SBATCH --contiguous
#SBATCH --exclude='node[03,07-08]'
#SBATCH --exclusive
#SBATCH --gres=gpu:h100:8
#SBATCH --job-name=r1hpc-deepseek-r1-0a1b2c-train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=lustre
#SBATCH --mail-type=FAIL
#SBATCH --mail-user=me@example.org
#SBATCH --mem=0
#SBATCH --nice=100
#SBATCH --no-requeue
#SBATCH --nodelist='node[01-02,05]'
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/deepseek-r1/logs/train-%j.log
#SBATCH --partition=batch
#SBATCH --qos=high
#SBATCH --reservation=r1
#SBATCH --signal=USR1@1020
#SBATCH --switches=1@24:00:00
#SBATCH --time=1440
#SBATCH --wckey=rl

# setup
module purge
module load cuda/13
export R1HPC_RUN_DIR=/runs/deepseek-r1
export R1HPC_HOME=HOME
export R1HPC_PYTHON=/opt/venv/bin/python
export PYTHONPATH=HOME${PYTHONPATH:+:$PYTHONPATH}
export SUBMITIT_PREEMPT_SIGNAL=RTMAX
unset SLURM_EXPORT_ENV
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
. HOME/sbatch/hooks.sh
r1hpc_begin
r1hpc_preflight 300 --mpi=pmi2 --nodes=16 --ntasks=16 --container-image=/images/r1.sqsh --container-mounts=/data:/data

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/deepseek-r1/submitit/train/20260102T030405/%j_%t_log.out --output /runs/deepseek-r1/logs/train-%j-%t.log --open-mode=append --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 --cpu-bind=none --nodes=16 --ntasks=16 --container-image=/images/r1.sqsh --container-mounts=/data:/data sh -c "$r1hpc_signals_later" task /opt/venv/bin/python -u -m submitit.core._submit /runs/deepseek-r1/submitit/train/20260102T030405


# teardown
rc=$?
r1hpc_end $rc
exit $rc
