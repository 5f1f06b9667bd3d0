#!/bin/bash
# The train job by hand: sbatch --nodes=16 sbatch/train.sh [CONFIG] [SUBMIT-OPTION...]   (from the checkout)
# `python -m r1hpc.submit CONFIG --stage train` submits the same job with the options that the configuration asks for.
#SBATCH --job-name=r1hpc-train
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@1800
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Of --signal above, seconds; with another --signal on sbatch's command line export this one too.
export R1HPC_SIGNAL_LEAD_S=${R1HPC_SIGNAL_LEAD_S:-1800}
export R1HPC_HOME=${R1HPC_HOME:-${SLURM_SUBMIT_DIR:?run this with sbatch, from the checkout}}
if ! [ -r "$R1HPC_HOME/sbatch/hooks.sh" ]; then
  echo "$R1HPC_HOME is no checkout of r1hpc: run sbatch from it, or export R1HPC_HOME" >&2
  # It was there at the first start: a file system that is away for a moment must not end the run.
  [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || { scontrol requeuehold "$SLURM_JOB_ID" && sleep 120; }
  exit 64
fi
export R1HPC_PYTHON=${R1HPC_PYTHON:-$R1HPC_HOME/.venv/bin/python}
export PYTHONPATH=$R1HPC_HOME${PYTHONPATH:+:$PYTHONPATH}
# Where a site says --export=NONE it would reach srun too, whose task then has none of these.
unset SLURM_EXPORT_ENV
config=${1:-$R1HPC_HOME/configs/r1.yaml}
shift || true
# shellcheck source=sbatch/hooks.sh
. "$R1HPC_HOME/sbatch/hooks.sh"
r1hpc_outlive
# The first start of the job notes its run directory beside the log. A restart goes on there with what was prepared then,
# as a job that r1hpc.submit queued does: no Python, no configuration and no Slurm that may be away for a moment.
note=$(readlink "/proc/$$/fd/1")-$(r1hpc_job).run
R1HPC_RUN_DIR=
[ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || R1HPC_RUN_DIR=$(cat "$note" 2>/dev/null)
if ! [ -d "$R1HPC_RUN_DIR" ]; then
  prepare=(--prepare --own-job "$(r1hpc_job)" --signal-lead "$R1HPC_SIGNAL_LEAD_S")
  [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || prepare+=(--again)
  R1HPC_RUN_DIR=$("$R1HPC_PYTHON" -m r1hpc.submit "$config" "${prepare[@]}" "$@" | tail -n 1)
  if ! [ -d "$R1HPC_RUN_DIR" ]; then
    [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] || r1hpc_hold "the run directory could not be prepared anew"
    exit 64
  fi
  printf '%s\n' "$R1HPC_RUN_DIR" 2>/dev/null >"$note"
fi
export R1HPC_RUN_DIR

r1hpc_begin
r1hpc_preflight "${R1HPC_PREFLIGHT_TIMEOUT_S:-300}" "--mpi=${R1HPC_MPI:-pmi2}"
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 --cpu-bind=none \
  sh -c "$r1hpc_signals_later" agent "$R1HPC_PYTHON" -m jobs.train "$R1HPC_RUN_DIR" --until "${R1HPC_UNTIL:-end}"
rc=$?
r1hpc_end $rc
exit $rc
