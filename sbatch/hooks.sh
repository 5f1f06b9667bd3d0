# What a job does around its srun. Sourced by the batch script, on the job's first node, outside any container.
#
# Expects R1HPC_RUN_DIR (the run directory), R1HPC_HOME (the directory that holds jobs/) and R1HPC_PYTHON (the job's
# interpreter). Leaves R1HPC_RUN and R1HPC_ATTEMPT in the environment of everything that the job starts.
# shellcheck shell=bash

# The batch host may have no Python of the job's; the requeue code needs nothing but a Python >= 3.6.
r1hpc_host_python() { command -v python3 || printf '%s\n' "$R1HPC_PYTHON"; }

# The id to requeue by: the last element of an array has the array's own id in SLURM_JOB_ID.
r1hpc_job() {
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    printf '%s_%s\n' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
  else
    printf '%s\n' "$SLURM_JOB_ID"
  fi
}

# sh -c "$r1hpc_signals_later" NAME COMMAND...: an agent has its handlers half a second after its start, and takes in then
# what came before. Where env is older than coreutils 8.31 such a signal is lost, but does not kill, as if a node had died.
# shellcheck disable=SC2016,SC2034
r1hpc_signals_later='env --block-signal=TERM true 2>/dev/null && exec env --block-signal=USR1 --block-signal=TERM "$@"
trap "" USR1 TERM; exec "$@"'

# r1hpc_hold REASON: leave the job to a person; a job that was cancelled stays cancelled.
r1hpc_hold() {
  if timeout 60 scontrol show job -o "$(r1hpc_job)" | grep -q ' JobState=RUNNING '; then
    echo "$1: holding job $(r1hpc_job)" >&2
    timeout 60 scontrol requeuehold "$(r1hpc_job)" && sleep 120
  else
    echo "$1, and job $(r1hpc_job) is not running any more" >&2
  fi
}

# An element of cast or convert: it is requeued by Slurm when it is preempted or its node is lost, and by itself below.
r1hpc_element_begin() {
  set +eu
  set +o pipefail
  # A script that died of the TERM at the end of a grace time would count as failed, and not come back.
  trap : TERM
}

# r1hpc_element_end RC: for a success alone. Slurm calls a job that ends after its grace time, or its time limit, TIMEOUT, whatever its exit
# code, as long as it has not been killed yet; what waits for its success would never start. Run again it finds its work
# done, and leaves within seconds.
r1hpc_element_end() {
  [ "$1" -eq 0 ] || return
  local job end
  job=$(SLURM_TIME_FORMAT=standard timeout 60 scontrol show job -o "$(r1hpc_job)") || return
  case $job in *' JobState=RUNNING '*) ;; *) return ;; esac
  end=${job##* EndTime=}
  end=$(date -d "${end%% *}" +%s 2>/dev/null) || return
  # The job ends for Slurm only when the controller hears of it.
  [ "$end" -gt $(($(date +%s) + 5)) ] && return
  echo "its time is over though its work is done: requeueing job $(r1hpc_job), so that it ends as completed"
  trap '' TERM
  timeout 60 scontrol requeue "$(r1hpc_job)" && sleep 120
}

# Set when TERM has come.
r1hpc_term=
r1hpc_outlive() {
  # A site's set-up lines may have turned these on; the teardown has to run whatever fails.
  set +eu
  set +o pipefail
  # Without a handler the shell would die of the TERM that ends a grace time, and no teardown would run.
  trap 'r1hpc_term=1' TERM
}

r1hpc_begin() {
  r1hpc_outlive
  if [ -e "$R1HPC_RUN_DIR/DONE" ]; then
    echo "$R1HPC_RUN_DIR is complete"
    exit 0
  fi
  if [ -e "$R1HPC_RUN_DIR/HOLD" ]; then
    echo "$R1HPC_RUN_DIR is held for a person to look at:"
    cat "$R1HPC_RUN_DIR/HOLD"
    exit 1
  fi
  local exports
  if ! exports=$("$(r1hpc_host_python)" "$R1HPC_HOME/jobs/requeue.py" begin "$R1HPC_RUN_DIR"); then
    r1hpc_hold "the attempt's record could not be opened"
    exit 1
  fi
  eval "$exports"
}

# r1hpc_preflight SECONDS SRUN-OPTION...: one rank a node looks at it; when one is bad the main srun is left out.
r1hpc_preflight() {
  local seconds=$1 rc
  shift
  # srun itself can wait for a lost node as long as Slurm takes to notice, hence the second timeout. The inner one would
  # die of a signal that asks to stop; the rank leaves with 75 instead.
  timeout --foreground -k 10 $((seconds + 30)) \
    srun --ntasks-per-node=1 --kill-on-bad-exit=0 --cpu-bind=none "$@" \
    sh -c "$r1hpc_signals_later" preflight \
    timeout -k 10 "$seconds" "$R1HPC_PYTHON" -m jobs.preflight "$R1HPC_RUN_DIR" "$R1HPC_ATTEMPT"
  rc=$?
  if [ "$rc" -eq 0 ] && [ -n "$r1hpc_term" ]; then
    rc=75
  fi
  if [ "$rc" -ne 0 ]; then
    echo "preflight: exit code $rc, nothing is started" >&2
    case $rc in 124 | 137) rc=76 ;; esac
    r1hpc_preflight_rc=$rc
    # The main command starts with srun: as a function it returns the preflight's code, and teardown goes on from there.
    # shellcheck disable=SC2317
    srun() { return "$r1hpc_preflight_rc"; }
  fi
}

r1hpc_decide() {
  "$(r1hpc_host_python)" "$R1HPC_HOME/jobs/requeue.py" end "$R1HPC_RUN_DIR" "$R1HPC_ATTEMPT" "$1"
}

# r1hpc_end RC: close the attempt's record, decide, and requeue where that is the decision.
r1hpc_end() {
  # A requeue sends TERM to this very script; it has to live on to exclude nodes.
  trap '' TERM
  local rc
  r1hpc_decide "$1"
  rc=$?
  # Killed, maybe between its decision and the requeue: the decision is on disk, and only has to be carried out.
  [ "$rc" -le 128 ] || { r1hpc_decide "$1"; rc=$?; }
  case $rc in
    0) r1hpc_element_end "$1" ;;
    3) sleep 120 ;; # Slurm ends the script now; leaving by itself would count as the job's end
    *)
      # Of a success only the record is lost.
      [ "$1" -eq 0 ] && return
      r1hpc_hold "no decision could be made"
      ;;
  esac
}
