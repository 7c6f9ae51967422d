#!/usr/bin/env bash
# Builds, tests, sanitizes and benchmarks robustcore on a machine with an NVIDIA GPU, in ten minutes
# at most, and writes benchmarks/results/<gpu>.json.
#
# Needed there: nvcc, a C++20 compiler, CMake, ninja, and a Python with a CUDA build of torch, pybind11,
# pytest, hypothesis, typer and rich. Nothing is downloaded and nothing is installed.
#
#   PYTHON=python3            the Python to use (default: .venv/bin/python where it exists)
#   GPU_CHECK_SECONDS=590     time for everything
#   GPU_CHECK_RESULTS=...     folder for the result file (default: benchmarks/results)
#   ROBUSTCORE_COMMIT=...     the commit, where the sources are a copy without .git
#
# Every step's outcome is in the summary at the end: ok, FAILED or skipped with the reason. The exit
# status is 1 if a step failed, 2 if the machine lacks what is needed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

[[ -z ${PYTHON:-} && -x .venv/bin/python ]] && PYTHON=.venv/bin/python
PYTHON=${PYTHON:-python3}
limit=${GPU_CHECK_SECONDS:-590}
results=${GPU_CHECK_RESULTS:-benchmarks/results}
logs=build/gpu-check
summary=()
failures=0
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

lacks() {
  echo "gpu_check: $1" >&2
  exit 2
}

left() { echo $((limit - SECONDS)); }

# step NAME SECONDS COMMAND...: runs a command for at most that long, or for what is left if less.
step() {
  local name=$1 seconds=$2 begin=$SECONDS status
  shift 2
  if (($(left) < 10)); then
    summary+=("FAILED   $name: no time left")
    failures=$((failures + 1))
    return 1
  fi
  ((seconds > $(left))) && seconds=$(left)
  echo "=== $name"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$logs/${name// /-}.log"
  status=${PIPESTATUS[0]}
  if ((status == 0)); then
    summary+=("ok       $name ($((SECONDS - begin)) s)")
    return 0
  fi
  local why="exit status $status"
  ((status == 124 || status == 137)) && why="not finished after $seconds s"
  summary+=("FAILED   $name: $why; see $logs/${name// /-}.log")
  failures=$((failures + 1))
  return 1
}

skip() { summary+=("skipped  $1: $2"); }

finish() {
  echo "=== summary, after $SECONDS s"
  printf '%s\n' "${summary[@]}"
  exit $((failures > 0))
}

for tool in nvcc cmake ninja; do
  command -v "$tool" >/dev/null || lacks "$tool is not on the PATH"
done
command -v "$PYTHON" >/dev/null || lacks "$PYTHON is not on the PATH"
missing=$("$PYTHON" -c '
from importlib.util import find_spec
names = "torch", "pybind11", "pytest", "hypothesis", "typer", "rich", "safetensors"
print(*[name for name in names if find_spec(name) is None])')
[[ -z $missing ]] || lacks "$PYTHON lacks $missing"
architecture=$("$PYTHON" - <<'PYTHON_CODE'
import torch
if torch.cuda.is_available():
    print("%d%d" % torch.cuda.get_device_capability())
PYTHON_CODE
) || lacks "torch does not load"
[[ -n $architecture ]] || lacks "torch finds no CUDA device"
mkdir -p "$logs"

# Only for the architecture at hand: the others are compiled by `make cuda-check`.
build() {
  cmake -S . -B build/gpu -G Ninja -DROBUSTCORE_CUDA=ON \
    "-DROBUSTCORE_CUDA_ARCHITECTURES=$architecture" \
    "-DSKBUILD_PROJECT_VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
    "-Dpybind11_DIR=$("$PYTHON" -m pybind11 --cmakedir)" \
    "-DPython_EXECUTABLE=$(command -v "$PYTHON")" \
    "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$PWD/python/robustcore" &&
    cmake --build build/gpu
}
export -f build
export PYTHON architecture

step "build" 300 bash -c build || finish
step "info" 60 "$PYTHON" -m robustcore.cli info
step "selftest" 120 "$PYTHON" -m robustcore.cli selftest --device cuda
step "cuda tests" 200 "$PYTHON" -m pytest -q -m cuda

# Without torch's caching allocator every tensor is an allocation of its own, whose end can be guarded.
if ! command -v compute-sanitizer >/dev/null; then
  skip "compute-sanitizer" "not on the PATH"
elif grep -qiE 'not supported|error 999' <<<"$(
  timeout 60 compute-sanitizer "$PYTHON" -c 'import torch; torch.ones(1, device="cuda")' 2>&1
)"; then
  skip "compute-sanitizer" "it does not support this device or its driver"
else
  for tool in memcheck racecheck; do
    step "$tool" 90 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes application-only \
      "$PYTHON" -m robustcore.cli selftest --device cuda --dtype float32
  done
fi

mkdir -p "$results"
step "benchmarks" 280 "$PYTHON" -m robustcore.cli bench --device cuda --json "$results/"
step "other tests" "$limit" "$PYTHON" -m pytest -q -m "not cuda"
finish
