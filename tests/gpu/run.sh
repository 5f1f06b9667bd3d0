#!/usr/bin/env bash
# Every test that needs a GPU, on a machine that reaches nothing else; those that need two are skipped on one.
#   bash tests/gpu/run.sh [LOGS]        # LOGS: a directory for logs and measurements (default: a new one in /tmp)
# PYTHON names the interpreter (default: python3); PYTHONPATH what it lacks. Kernels that SGLang, Triton and inductor
# compile lie in ~/.cache/tvm-ffi, ~/.cache/flashinfer, ~/.triton and TORCHINDUCTOR_CACHE_DIR: kept from one machine to
# the next (with *.o and *.ninja), they save each engine's start more than a minute.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
logs=${1:-$(mktemp -d /tmp/r1hpc-gpu-tests.XXXXXX)}
mkdir -p "$logs"
export R1HPC_MEASURED=$logs/measured HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
# On several GPUs: NVLink multicast can put a host that others share out of service.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1

pids=() names=()
part() { # part NAME SECONDS ARGUMENTS...: one pytest in the background
  local name=$1 limit=$2
  shift 2
  timeout -k 15 "$limit" "${PYTHON:-python3}" -m pytest -p no:cacheprovider -rA --tb=short "$@" >"$logs/$name.txt" 2>&1 &
  pids+=($!) names+=("$name")
}
failed=0
finish() { # wait for the parts that have begun
  local index
  for index in "${!pids[@]}"; do
    wait "${pids[$index]}"
    local code=$?
    echo "${SECONDS} s: ${names[$index]}: exit code $code: $(tail -n 1 "$logs/${names[$index]}.txt")"
    [ $code -eq 0 ] || failed=1
  done
  pids=() names=()
}

cycle=tests/gpu/test_colocated_cycle.py
# Engines spend most of their start in imports and compilation, so what is small runs at once.
part bf16 240 $cycle -k bf16
part fp8 240 $cycle -k "fp8 and not bf16 and not 1b and not tp2"
part units 240 tests/gpu tests/sync/test_device_memory.py --ignore=$cycle
finish
# What is measured has the machine to itself.
part fp8-1b 200 $cycle -k 1b
finish
part fp8-tp2 200 $cycle -k tp2
finish
echo "logs and measurements: $logs"
exit $failed
