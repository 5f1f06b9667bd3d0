#!/bin/bash
# The cast stage by hand: sbatch [--array=0-15] sbatch/cast.sh [CONFIG] [--site NAME] [--set KEY=VALUE]   (from the checkout)
# One array task casts one slice of the safetensors files; the number of tasks is cast.num_tasks of the configuration.
#SBATCH --job-name=r1hpc-cast
#SBATCH --array=0-15
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

export R1HPC_HOME=${R1HPC_HOME:-$SLURM_SUBMIT_DIR}
if ! [ -r "$R1HPC_HOME/sbatch/hooks.sh" ]; then
  echo "$R1HPC_HOME is no checkout of r1hpc: run sbatch from it, or export R1HPC_HOME" >&2
  exit 64
fi
export R1HPC_PYTHON=${R1HPC_PYTHON:-$R1HPC_HOME/.venv/bin/python}
export PYTHONPATH=$R1HPC_HOME${PYTHONPATH:+:$PYTHONPATH}
# Where a site says --export=NONE it would reach srun too, whose task then has none of these.
unset SLURM_EXPORT_ENV
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# shellcheck source=sbatch/hooks.sh
. "$R1HPC_HOME/sbatch/hooks.sh"
r1hpc_element_begin
config=${1:-$R1HPC_HOME/configs/r1.yaml}
shift || true
srun sh -c 'trap "" TERM; exec "$@"' cast "$R1HPC_PYTHON" -m jobs.cast "$config" "$@"
rc=$?
r1hpc_element_end $rc
exit $rc
